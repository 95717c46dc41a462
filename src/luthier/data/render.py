"""Conversations and texts as tokens, with the tokens that are trained.

What training sees and what serving sends come from the same code: the tokens in front of an answer are, id by id, what
`Renderer.prompt` gives for the messages before it.  Two kinds of templates cannot keep that promise and say so in
`Renderer.note`: those that show finished answers differently from how they open new ones, and those whose tokenizer
puts a space in front of every piece of text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
from transformers import PreTrainedTokenizerFast

from luthier.base.errors import DataError, ModelError
from luthier.base.records import BadRow, Chat, Fault, Json, Message, Text, Where
from luthier.data.batch import Tokens
from luthier.data.bundled import template_of
from luthier.data.controls import Controls, Shield
from luthier.data.template import Template, TemplateFault
from luthier.data.turns import (
    Form,
    Messages,
    Render,
    Rendered,
    Span,
    find_answers,
    find_texts,
    is_answer,
    probe,
    without_marks,
)

VERSION = "1"
"""Changes whenever the same record may give other tokens."""

TrainOn = Literal["assistant", "last", "all"]

_CODE = "```python\ndef f(x):\n\treturn {'a': x ** 2}  # 注释\n```"
_BILINGUAL: tuple[Message, ...] = (
    Message("user", "Hello, what's the weather?  It is 23.5 °C."),
    Message("assistant", f"Here you are:\n\n{_CODE}"),
    Message("user", "用中文再说一遍，好吗？"),
    Message("assistant", "好的，今天二十三度。"),
)


class Renderer:
    """A tokenizer with its chat template.

    Args:
        template: Jinja source, the name of a bundled template, or a file; None takes the tokenizer's own.
        template_args: further variables for the template.

    Raises:
        ModelError: no end-of-sequence token, no such template, or one that fails on a plain conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        template: str | None = None,
        template_args: Mapping[str, Any] = {},
    ):
        self._made_from = tokenizer, template, dict(template_args)
        if not isinstance(tokenizer.eos_token, str):
            raise ModelError("the tokenizer names no end-of-sequence token", where="tokenizer_config.json: eos_token")
        self.tokenizer = tokenizer
        self._eos = tokenizer.eos_token
        self._controls = Controls(tokenizer)
        self._adds_bos = _ids(tokenizer, "a", add_special_tokens=True)[:1] == [tokenizer.bos_token_id]
        self.template, notes = template_of(tokenizer, template)
        special = cast(dict[str, Any], tokenizer.special_tokens_map)
        self._variables: dict[str, Any] = {**special, "documents": None, **template_args}
        self._compiled, self._form = self._probe()
        if self._form.opening and not self._form.keeps_opening:
            notes.append(f"the template opens answers with {self._form.opening!r} but leaves that out of finished ones")
        self.note = "; ".join(notes + self._check_encoding()) or None
        """What a user should know about template and tokenizer, if anything."""

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(self._controls.ids[stop] for stop in self._form.stops)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything the tokens of a record depend on, besides the record."""
        variables = repr(sorted(self._variables.items()))
        parts = (VERSION, self._controls.digest, self.template, variables, str(self._adds_bos))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def chat(self, chat: Chat, *, train_on: TrainOn) -> Tokens:
        """One conversation.

        Args:
            train_on: the turns with weight 1 where a message does not say: every assistant turn, the last one, or all
                of the text, with what the template writes around it.

        Where the template writes no token that ends the last answer, the end-of-sequence token is added and trained.

        Raises:
            BadRow: `template_error`, `unmaskable_template` when the trained text cannot be told from the rest,
                `template_without_tools` when an answer's tool call is not in the text.
        """
        base = float(train_on == "all")
        others = [
            n for n, turn in enumerate(chat.messages) if turn.role != "assistant" and turn.weight not in (None, base)
        ]
        try:
            shield, render, shown = self._show(chat.messages, chat.tools, prompts=False)
            spans = find_answers(self._form, render, shown)
            marked = find_texts(self._form, render, shown, others) if others else {}
        except TemplateFault as error:
            raise BadRow(Fault("template_error", chat.where, f"the chat template failed: {error}")) from error
        if spans is None and train_on == "all" and all(turn.weight is None for turn in chat.messages):
            spans = {}
        if spans is None or marked is None:
            message = "the chat template does not let the trained text be told from the rest"
            raise BadRow(Fault("unmaskable_template", chat.where, message))
        if (turn := _unwritten_call(shown, spans)) is not None:
            message = "the chat template leaves this tool call out; name one that knows tools with --template"
            raise BadRow(Fault("template_without_tools", chat.where, message, f"messages[{turn}].tool_calls"))
        text, spans = self._ended(shown, spans | marked)
        weights = _turn_weights(chat.messages, train_on)
        weighted = sorted((start, end, weights[turn] * chat.weight) for turn, (start, end) in spans.items())
        return self._controls.encode(text, weighted, base * chat.weight, shield.restore)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Json]] = ()) -> list[int]:
        """Token ids that ask for the next answer.

        Raises:
            DataError: `template_error`.
        """
        try:
            shield, render, shown = self._show(messages, tools, prompts=True)
            spans = find_answers(self._form, render, shown) or {}
        except TemplateFault as error:
            raise DataError(f"the chat template failed: {error}", code="template_error") from error
        cuts = sorted((start, end, 0.0) for start, end in spans.values())
        return self._controls.encode(shown.text, cuts, 0.0, shield.restore).ids.tolist()

    def text(self, text: Text) -> Tokens:
        """A text, from the beginning-of-sequence token (where the tokenizer adds one) to the end-of-sequence token."""
        start = [self.tokenizer.bos_token_id] if self._adds_bos else []
        ids = np.array([*start, *self._controls.text_ids(text.text), self.tokenizer.eos_token_id], dtype=np.int32)
        weights = np.full(len(ids), text.weight, dtype=np.float32)
        weights[0] = 0
        return Tokens(ids, weights)

    def having(self, **more: Any) -> Renderer:
        """The same with further variables for the template.  Raises ModelError where it fails with them."""
        tokenizer, template, known = self._made_from
        return Renderer(tokenizer, template=template, template_args={**known, **more})

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, self._made_from

    def _probe(self) -> tuple[Template, Form]:
        try:
            compiled = Template(self.template)
            return compiled, probe(self._renders(compiled, None, Shield(self._controls)), self._controls, self._eos)
        except TemplateFault as error:
            raise ModelError(
                f"the chat template fails on a plain conversation: {error}",
                where=f"{self.tokenizer.name_or_path}: chat template",
                fix="Name another one with --template, for example chatml",
                code="bad_template",
            ) from error

    def _check_encoding(self) -> list[str]:
        """Compare with the tokenizer's own encoding; encode jointly where pieces do not add up to the whole."""
        chat = Chat(_BILINGUAL, Where("probe", 1))
        _, render, shown = self._show(chat.messages, (), prompts=False)
        whole, _ = self._ended(shown, find_answers(self._form, render, shown) or {})
        expected = _ids(self.tokenizer, whole)
        for joint in (False, True):
            self._controls.joint = joint
            if self.chat(chat, train_on="all").ids.tolist() == expected:
                return ["answers are cut out of tokens of the whole text: their own do not add up to it"] * joint
        return ["the tokenizer encodes a whole conversation differently from what stands between control tokens"]

    def _show(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Json]], *, prompts: bool
    ) -> tuple[Shield, Render, Rendered]:
        shield = Shield(self._controls)
        hidden = [cast(dict[str, Any], shield.hide(_as_dict(message))) for message in messages]
        render = self._renders(self._compiled, shield.hide(tools) or None, shield)
        marked = render(hidden, prompts)
        return shield, render, Rendered(hidden, without_marks(marked), marked, prompts)

    def _renders(self, compiled: Template, tools: Json, shield: Shield) -> Render:
        def render(messages: Messages, prompts: bool) -> str:
            variables = {**self._variables, "tools": tools, "messages": messages, "add_generation_prompt": prompts}
            return compiled.render(variables, shield.characters)

        return render

    def _ended(self, shown: Rendered, spans: dict[int, Span]) -> tuple[str, dict[int, Span]]:
        """The text with a token that ends the last answer."""
        last = len(shown.messages) - 1
        if not is_answer(shown.messages[last]):
            return shown.text, spans
        start, end = spans.get(last, (0, len(shown.text.rstrip())))
        if shown.text[:end].rstrip().endswith(self._form.stops):
            return shown.text, spans
        text = shown.text[:end] + self._eos
        return text, spans | {last: (start, len(text))} if last in spans else spans


def _remade(tokenizer: PreTrainedTokenizerFast, template: str | None, template_args: Mapping[str, Any]) -> Renderer:
    return Renderer(tokenizer, template=template, template_args=template_args)


def _turn_weights(messages: Sequence[Message], train_on: TrainOn) -> list[float]:
    """Each turn's own weight, or what `train_on` says."""
    answers = [n for n, turn in enumerate(messages) if turn.role == "assistant"]
    chosen = {"assistant": answers, "last": answers[-1:], "all": range(len(messages))}[train_on]
    return [float(n in chosen) if turn.weight is None else turn.weight for n, turn in enumerate(messages)]


def _unwritten_call(shown: Rendered, spans: Mapping[int, Span]) -> int | None:
    """The first answer with a tool call whose function the rendered answer does not name."""
    for turn, (start, end) in spans.items():
        calls: Sequence[Mapping[str, Any]] = shown.messages[turn].get("tool_calls", ())
        if any(call["function"]["name"] not in shown.text[start:end] for call in calls):
            return turn
    return None


def _as_dict(message: Message) -> dict[str, Any]:
    """A message as templates know it; reasoning goes by either of two names."""
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        shown |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.tool_calls:
        shown["tool_calls"] = message.tool_calls
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        shown["name"] = message.name
    return shown


def _ids(tokenizer: PreTrainedTokenizerFast, text: str, *, add_special_tokens: bool = False) -> list[int]:
    return cast(list[int], tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
