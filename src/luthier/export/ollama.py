"""A Modelfile whose template writes the prompt that the model was trained on.

A chat template is a Jinja program, Ollama's a Go template.  What can be carried over are templates that put fixed text
before and after each message, by its role, with fixed text at the beginning and before the answer: ChatML, Llama 3,
Gemma and their like.  The pieces are found by rendering conversations, put together in Go's words, and then held
against the chat template on other conversations; a template that disagrees with its pieces anywhere is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.base.errors import DataError, ModelError
from luthier.base.records import BadRow, Chat, Message, Where
from luthier.data.render import Renderer

_MARKS = ("⟦1⟧", "⟦2⟧", "⟦3⟧", "⟦4⟧")
"""Texts that no template writes of its own accord."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """The fixed text of a chat template."""

    start: str
    """Before a conversation without a system message, first of all; it may hold the template's own system message."""
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    """Before and after a message of each role; None where the template knows no system message."""
    answer: str
    """Before the answer that is wanted."""

    def prompt(self, messages: Sequence[Message]) -> str:
        """What the pieces make of a conversation that ends with the user, without the beginning-of-sequence token."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        text = "" if messages[0].role == "system" else self.start
        for message in messages:
            before, after = around[message.role] or ("", "")
            text += before + message.content + after
        return text + self.answer


def modelfile(renderer: Renderer, gguf: str, system: str | None) -> str:
    """The Modelfile beside a GGUF file of the name `gguf`.

    Raises:
        ModelError: code `template_not_expressible`.
    """
    pieces = find_pieces(renderer)
    if system and pieces.system is None:
        raise _refused("it knows no system message, and the model was trained with one")
    stops = [renderer.tokenizer.convert_ids_to_tokens(number) for number in sorted(renderer.stop_ids)]
    lines = [f"FROM ./{gguf}", "", f'TEMPLATE """{go_template(pieces)}"""', ""]
    if system:
        if '"""' in system:
            raise _refused('its system message holds """')
        lines += [f'SYSTEM """{system}"""', ""]
    lines += [f"PARAMETER stop {_quoted(str(stop))}" for stop in stops]
    return "\n".join(lines) + "\n"


def adds_bos(renderer: Renderer) -> bool:
    """Whether prompts begin with the beginning-of-sequence token."""
    prompt = renderer.prompt([Message("user", _MARKS[0])])
    return renderer.tokenizer.bos_token_id is not None and prompt[0] == renderer.tokenizer.bos_token_id


def find_pieces(renderer: Renderer) -> Pieces:
    """The pieces of a chat template, once they are known to be all there is to it.

    Raises:
        ModelError: code `template_not_expressible`.
    """
    try:
        pieces = _pieces(renderer)
    except _Odd as odd:
        raise _refused(str(odd)) from odd
    for messages in _conversations(with_system=pieces.system is not None):
        if pieces.prompt(messages) != _rendered(renderer, messages):
            roles = ", ".join(message.role for message in messages)
            raise _refused(f"what it writes around a message depends on more than its role ({roles})")
    return pieces


class _Odd(Exception):
    """What a template does that pieces cannot."""


def _pieces(renderer: Renderer) -> Pieces:
    one, two, three, four = _MARKS
    user, answer, again = Message("user", one), Message("assistant", two), Message("user", three)
    talk = _rendered(renderer, [user, answer, again])
    first, middle, second, opened = _between(talk, one, two, three)
    after_answer = _ended(renderer, [user, answer], two)
    if not second.startswith(after_answer):  # where the template writes no end, training put the token of the end
        after_answer = after_answer.removesuffix(str(renderer.tokenizer.eos_token))
    after_user = _ended(renderer, [user], one)
    before_user = _without_start(second, after_answer, "a user's message after an answer")
    before_answer = _without_start(middle, after_user, "an answer after a user's message")
    asking = _without_start(opened, after_user, "the answer that is wanted")
    start = _without_end(first, before_user, "the first message")
    system = None
    try:
        with_system = _rendered(renderer, [Message("system", four), user])
    except DataError:
        with_system = ""
    if with_system:
        before, between, _ = _between(with_system, four, one)
        system = before, _without_end(between, before_user, "a user's message after a system message")
    return Pieces(start, system, (before_user, after_user), (before_answer, after_answer), asking)


def _rendered(renderer: Renderer, messages: Sequence[Message]) -> str:
    """The prompt as text, without the beginning-of-sequence token, which Ollama adds by itself.  Raises DataError."""
    return _text(renderer, renderer.prompt(messages))


def _text(renderer: Renderer, ids: list[int]) -> str:
    if ids[:1] == [renderer.tokenizer.bos_token_id]:
        ids = ids[1:]
    text = renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _ended(renderer: Renderer, messages: Sequence[Message], last: str) -> str:
    """What stands behind the last message of a conversation that asks for nothing, as training saw it."""
    try:
        ids = renderer.chat(Chat(tuple(messages), Where("probe", 1)), train_on="all").ids.tolist()
    except BadRow as error:
        raise _Odd(str(error)) from error
    return _text(renderer, ids).rpartition(last)[2]


def _between(text: str, *marks: str) -> list[str]:
    parts: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise _Odd("it leaves messages out, or changes their text")
        parts.append(before)
    return [*parts, text]


def _without_start(text: str, start: str, what: str) -> str:
    if not text.startswith(start):
        raise _Odd(f"{what} is not simply put behind what came before")
    return text.removeprefix(start)


def _without_end(text: str, end: str, what: str) -> str:
    if not text.endswith(end):
        raise _Odd(f"{what} is not introduced as others are")
    return text.removesuffix(end)


def _conversations(*, with_system: bool) -> Iterator[list[Message]]:
    """Conversations of different lengths, in two languages, with and without a system message."""
    said = [
        "Hello, what is 2 + 2?",
        "It is 4.\n\nAnything else?",
        "再说一遍，好吗？",
        "等于四。",
        "<b>Thanks</b> {{ .x }}",
    ]
    for turns in (1, 3, 5):
        talk = [Message("assistant" if turn % 2 else "user", said[turn]) for turn in range(turns)]
        yield talk
        if with_system:
            yield [Message("system", "Be brief. 请简短。"), *talk]


def go_template(pieces: Pieces) -> str:
    """The pieces in the words of Go's text/template, as Ollama runs it."""
    text = _literal(pieces.start)
    if text and pieces.system is not None:
        text = f"{{{{ if not .System }}}}{text}{{{{ end }}}}"
    text += "{{ range .Messages }}"
    branches = {"system": pieces.system, "user": pieces.user, "assistant": pieces.assistant}
    word = "if"
    for role, around in branches.items():
        if around is not None:
            text += f'{{{{ {word} eq .Role "{role}" }}}}{_literal(around[0])}{{{{ .Content }}}}{_literal(around[1])}'
            word = "else if"
    return text + "{{ end }}{{ end }}" + _literal(pieces.answer)


def _literal(text: str) -> str:
    """Text that stands for itself in a Go template inside a Modelfile's triple quotes."""
    if '"""' in text:
        raise _refused('it writes """')
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _refused(why: str) -> ModelError:
    return ModelError(
        f"this chat template cannot be written as a Modelfile: {why}",
        where="--to_ollama",
        code="template_not_expressible",
        fix="The GGUF file alone (--to_gguf) carries the template itself, for servers that run Jinja",
    )
