"""Which characters of a rendered conversation the assistant wrote.

A template does not say so, except in {% generation %} blocks.  It is asked with probe conversations once, and its
answer is checked on every row; where nothing is exact, nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.controls import Controls
from luthier.data.template import CLOSE, OPEN, TemplateFault

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, bool], str]
"""(messages, whether to add the generation prompt) -> text, with OPEN and CLOSE around generation blocks."""
Span = tuple[int, int]
"""Start and end in characters, the end exclusive."""

_BEGIN, _END = "\U0010fff2", "\U0010fff3"
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")

_ASKED = "Which wood is the top made of?", "And the back?"
_ANSWERED = "It is made of spruce.", "It is maple."
PROBE: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": _ASKED[0]},
    {"role": "assistant", "content": _ANSWERED[0]},
    {"role": "user", "content": _ASKED[1]},
    {"role": "assistant", "content": _ANSWERED[1]},
)


def without_marks(text: str) -> str:
    """A rendered text as the model sees it."""
    return _MARKS.sub("", text)


def is_answer(message: Mapping[str, Any]) -> bool:
    """Whether a turn is the assistant's."""
    return message["role"] == "assistant"


@dataclass(frozen=True, slots=True)
class Form:
    """What probing told about a template."""

    opening: str
    """What the generation prompt adds; nothing where a template has none."""
    header: str
    """What stands before every answer, with a control token in it; nothing where there is no such thing."""
    lead: str
    """What stands between the opening and an answer and is the model's to write, such as a space."""
    stops: tuple[str, ...]
    """Control tokens that end an answer."""
    border: re.Pattern[str]
    """Matches a stop, as its group `stop`, or a control token that opens a turn."""
    keeps_opening: bool
    """Whether finished answers begin with the opening too."""


def probe(render: Render, controls: Controls, eos: str) -> Form:
    """Learn a template's form from its rendering of PROBE.

    Raises:
        TemplateFault: the template fails on the plainest of conversations.
    """
    whole = without_marks(render(PROBE, False))
    fronts: list[str] = []
    openings: list[str] = []
    for number in (0, 1):
        before = PROBE[: 2 * number + 1]
        asked = without_marks(render(before, False))
        prompt = without_marks(render(before, True))
        at = whole.find(_ANSWERED[number])
        openings.append(prompt.removeprefix(asked) if prompt.startswith(asked) else "")
        fronts.append(whole[len(asked) : at] if whole.startswith(asked) and at >= 0 else "")
    opening = openings[0] if openings[0] == openings[1] else ""
    header = _whole_controls(_common_start([opening, *fronts]), opening, controls)
    tail = whole[whole.rfind(_ANSWERED[1]) + len(_ANSWERED[1]) :]
    between = whole[whole.find(_ANSWERED[0]) + len(_ANSWERED[0]) : whole.find(_ASKED[1])]
    ending = controls.names(tail)[-1:]
    stops = tuple(dict.fromkeys([*ending, eos]))
    openers = {*controls.names(header), *controls.names(between)} - set(stops)
    choices = [f"(?P<stop>{'|'.join(map(re.escape, stops))})", *map(re.escape, sorted(openers))]
    return Form(
        opening=opening,
        header=header if controls.names(header) and ending else "",
        lead=fronts[1].removeprefix(opening) if fronts[1].startswith(opening) else "",
        stops=stops,
        border=re.compile("|".join(choices)),
        keeps_opening=fronts[1].startswith(opening),
    )


def _common_start(texts: Sequence[str]) -> str:
    length = 0
    for characters in zip(*texts, strict=False):
        if len(set(characters)) > 1:
            break
        length += 1
    return texts[0][:length]


def _whole_controls(header: str, opening: str, controls: Controls) -> str:
    """The header up to a control token that it holds only the beginning of."""
    for found in controls.written.finditer(opening):
        if found.start() < len(header) < found.end():
            return opening[: found.start()]
    return header


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation, rendered."""

    messages: Messages
    text: str
    """Without marks."""
    marked: str
    """As the template wrote it."""
    prompts: bool
    """Whether it ends with the generation prompt."""


def find_answers(form: Form, render: Render, shown: Rendered) -> dict[int, Span] | None:
    """The span of each assistant turn, by its number among the messages; None when it cannot be told exactly.

    A span holds everything the template wrote for the turn: reasoning, text, tool calls and the token that ends it,
    but not what the generation prompt begins the turn with, nor the line break behind.  Tried in order: generation
    blocks, the header of each turn, the rendering of the messages before each turn, marks inside the turn's text.
    """
    turns = [number for number, message in enumerate(shown.messages) if is_answer(message)]
    spans = _by_blocks(form, shown, len(turns)) or _by_header(form, shown, len(turns))
    spans = spans or _by_prefix(form, render, shown, turns)
    if spans is not None:
        return dict(zip(turns, spans, strict=True))
    return find_texts(form, render, shown, turns)


def _by_blocks(form: Form, shown: Rendered, count: int) -> list[Span] | None:
    if shown.marked.count(OPEN) != count or not count:
        return None
    spans: list[Span] = []
    position, start = 0, 0
    for part in re.split(f"([{OPEN}{CLOSE}])", shown.marked):
        if part == OPEN:
            start = position
        elif part == CLOSE:
            spans.append((start, _with_stop(form, shown.text, start, position)))
        else:
            position += len(part)
    return spans if len(spans) == count else None


def _with_stop(form: Form, text: str, start: int, end: int) -> int:
    """The end of a turn's text, or of the stop token right behind it."""
    if text[start:end].rstrip().endswith(form.stops):
        return end
    after = re.compile(rf"\s*(?:{form.border.pattern})").match(text, end)
    return after.end() if after and after["stop"] else end


def _by_header(form: Form, shown: Rendered, count: int) -> list[Span] | None:
    if not form.header:
        return None
    body = shown.text
    if shown.prompts:
        if not body.endswith(form.opening):
            return None
        body = body[: len(body) - len(form.opening)]
    spans: list[Span] = []
    at = body.find(form.header)
    while at >= 0:
        start = at + len(form.opening if body.startswith(form.opening, at) else form.header)
        border = form.border.search(body, start)
        if border is None or not border["stop"]:
            return None
        spans.append((start, border.end()))
        at = body.find(form.header, border.end())
    return spans if len(spans) == count else None


def _by_prefix(form: Form, render: Render, shown: Rendered, turns: Sequence[int]) -> list[Span] | None:
    """An answer begins where the prompt of the messages before it ends, if the whole text goes on from there."""
    spans: list[Span] = []
    for turn in turns:
        try:
            prompt = without_marks(render(shown.messages[:turn], True))
            upto = without_marks(render(shown.messages[: turn + 1], False)).rstrip()
        except TemplateFault:
            return None
        if not (shown.text.startswith(prompt) and shown.text.startswith(upto) and len(upto) > len(prompt)):
            return None
        border = form.border.search(upto, len(prompt))
        spans.append((len(prompt), border.end() if border and border["stop"] else len(upto)))
    return spans


def find_texts(form: Form, render: Render, shown: Rendered, turns: Sequence[int]) -> dict[int, Span] | None:
    """The spans of turns that hold text and nothing else, of any role, by marking the text itself.

    The marks stand inside the text's white space, so that a template which trims does what it did without them; the
    rendering must be the same but for the marks.
    """
    marked = [dict(message) for message in shown.messages]
    for turn in turns:
        message = marked[turn]
        core = str(message["content"]).strip()
        if not core or message.get("tool_calls") or message.get("reasoning_content"):
            return None
        message["content"] = message["content"].replace(core, f"{_BEGIN}{core}{_END}", 1)
    try:
        text = without_marks(render(marked, shown.prompts))
    except TemplateFault:
        return None
    pieces = re.split(f"[{_BEGIN}{_END}]", text)
    if "".join(pieces) != shown.text or len(pieces) != 2 * len(turns) + 1:
        return None
    spans: dict[int, Span] = {}
    position = 0
    for number, turn in enumerate(turns):
        start = position + len(pieces[2 * number])
        position = start + len(pieces[2 * number + 1])
        lead = len(form.lead) if is_answer(shown.messages[turn]) and shown.text[:start].endswith(form.lead) else 0
        spans[turn] = start - lead, _with_stop(form, shown.text, start, position)
    return spans
