"""The text in a row: which of its fields a person would read, whatever the shape, and how to put other text there.

A row stays as it is, with every column.  A view names the places of its text; the rest (ids, labels, weights, roles)
is never taken for text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal, cast

from luthier.base.records import Json
from luthier.data.messages import ROLES

Use = Literal["system", "question", "answer", "text"]
Path = tuple[str | int, ...]

_SYSTEM = ("system", "instruct")
_QUESTION = (
    "instruction",
    "input",
    "prompt",
    "query",
    "question",
    "ask",
    "context",
    "sentence1",
    "sentence2",
    "premise",
)
_ANSWER = (
    *("output", "response", "answer", "completion", "chosen", "rejected", "rejected_response", "hypothesis"),
    *("preferred_output", "non_preferred_output", "preferred_completion", "non_preferred_completion"),
    *("chosen_messages", "rejected_messages", "answer1", "answer2", "pos", "neg", "positive", "negative"),
)
_TEXT = ("text", "content", "document", "passage", "title", "body")
_CHATS = ("messages", "conversations", "conversation")
_USES: dict[str, Use] = {
    **dict.fromkeys(_SYSTEM, "system"),
    **dict.fromkeys(_QUESTION, "question"),
    **dict.fromkeys(_ANSWER, "answer"),
    **dict.fromkeys(_TEXT, "text"),
    **dict.fromkeys(("history", "instances"), "question"),
    **dict.fromkeys(_CHATS, "text"),
}
_LABELS = frozenset(
    """label labels category class id _id idx index uuid tag tags ner_tags tokens source src lang language type meta
    metadata date time timestamp url file path images image videos video audios audio tools functions score scores
    weight reward action state user split license""".split()  # noqa: SIM905  (a list is ten lines)
)
"""Columns that hold no text to read, wherever no column of a known shape is there."""


@dataclass(frozen=True, slots=True)
class Field:
    """One piece of text in a row."""

    path: Path
    """Keys and positions that lead to it."""
    text: str
    use: Use

    @property
    def name(self) -> str:
        """The path as people write it: `messages[0].content`."""
        parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path]
        return "".join(parts).removeprefix(".")


def fields(value: Mapping[str, Json]) -> list[Field]:
    """Every text of a row, in the order of its columns.

    Columns known from any shape are read; where there is none, all columns with text that do not look like labels,
    ids or metadata; where even these are missing, nothing.
    """
    found: list[Field] = []
    for name in _columns(tuple(value)):
        found += _inside(value[name], (name,), _USES.get(name.lower(), "text"))
    return found


@lru_cache(maxsize=4096)
def _columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """The columns with text among those of a row."""
    known = tuple(name for name in names if name.lower() in _USES)
    return known or tuple(name for name in names if name.lower() not in _LABELS)


def _inside(value: Json, path: Path, use: Use) -> Iterator[Field]:
    if isinstance(value, str):
        yield Field(path, value, use)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            # history is a list of [question, answer]
            turn: Use = ("answer" if number % 2 else "question") if path[0] == "history" and len(path) == 2 else use
            yield from _inside(item, (*path, number), turn)
    elif isinstance(value, dict):
        yield from _message(value, path, use)


def _message(value: Mapping[str, Json], path: Path, use: Use) -> Iterator[Field]:
    """The text of a message in any form, of a turn of `human` and `assistant`, or of an instance."""
    role = value.get("role", value.get("from"))
    speaker = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if speaker == "call":
        return
    if speaker is not None:
        spoken: dict[str, Use] = {"system": "system", "user": "question", "assistant": "answer", "tool": "question"}
        for key in ("content", "value", "reasoning_content", "reasoning", "thinking"):
            yield from _content(value.get(key), (*path, key), spoken[speaker])
        return
    if value.get("type") in ("text", "input_text", "output_text"):
        yield from _content([cast(Json, dict(value))], path[:-1], use)
        return
    for key, item in value.items():
        turn: Use | None = _USES.get(key.lower())
        if key in ("human", "assistant", "message"):
            turn = "answer" if key == "assistant" else "question" if key == "human" else use
        if turn is not None:
            yield from _inside(item, (*path, key), turn)


def _content(value: Json, path: Path, use: Use) -> Iterator[Field]:
    """A message's content: text, or a list of parts of which only the text counts."""
    if isinstance(value, str):
        yield Field(path, value, use)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            if isinstance(part, str):
                yield Field((*path, number), part, use)
            elif isinstance(part, dict):
                key = next((key for key in ("text", "value", "thinking") if isinstance(part.get(key), str)), None)
                if key and part.get("type", "text") in ("text", "input_text", "output_text", "thinking", "reasoning"):
                    yield Field((*path, number, key), cast(str, part[key]), use)


def texts_of(value: Mapping[str, Json]) -> list[str]:
    """The texts of a row, in the order of `fields`."""
    pieces = [value[name] for name in _columns(tuple(value))]
    if all(isinstance(piece, str) for piece in pieces):
        return cast(list[str], pieces)
    return [field.text for field in fields(value)]


def texts_of_all(values: Sequence[Mapping[str, Json]]) -> list[list[str]]:
    """`texts_of` each row; faster for many."""
    columns = list(map(tuple, values))
    read = {names: _columns(names) for names in set(columns)}
    pieces = [[value[name] for name in read[names]] for value, names in zip(values, columns, strict=True)]
    if set(map(type, chain.from_iterable(pieces))) <= {str}:
        return cast("list[list[str]]", pieces)
    return [texts_of(value) for value in values]


def text_of_all(values: Sequence[Mapping[str, Json]]) -> list[str]:
    """`text_of` each row; faster for many."""
    return [some[0] if len(some) == 1 else "\n".join(filter(None, some)) for some in texts_of_all(values)]


def text_of(value: Mapping[str, Json]) -> str:
    """The text of a row as a person would read it: its pieces that are not empty, one a line."""
    return "\n".join([text for text in texts_of(value) if text])


def rewrite(value: Mapping[str, Json], change: Callable[[Field], str | None]) -> dict[str, Json]:
    """A row with other text in the places of its text; nothing else changes.

    Args:
        change: the new text of a field; None leaves it.
    """
    changed: dict[str, Json] = dict(value)
    copied: set[Path] = set()
    for field in fields(value):
        text = change(field)
        if text is None or text == field.text:
            continue
        holder: dict[str, Json] | list[Json] = changed
        for depth, step in enumerate(field.path[:-1], 1):
            below = _get(holder, step)
            if field.path[:depth] not in copied:
                copied.add(field.path[:depth])
                below = dict(below) if isinstance(below, dict) else list(cast(list[Json], below))
                _set(holder, step, below)
            holder = cast("dict[str, Json] | list[Json]", below)
        _set(holder, field.path[-1], text)
    return changed


def column(value: Mapping[str, Json], name: str) -> Json:
    """The value of a column, or what lies deeper by a dotted path (`meta.source`); None where there is none."""
    if name in value:
        return value[name]
    found: Json = cast(Json, value)
    for step in name.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _get(holder: dict[str, Json] | list[Json], step: str | int) -> Json:
    return holder[step] if isinstance(step, int) else cast(dict[str, Json], holder)[step]  # type: ignore[index]


def _set(holder: dict[str, Json] | list[Json], step: str | int, value: Json) -> None:
    holder[step] = value  # type: ignore[index,call-overload]  # a path leads through what it was made from
