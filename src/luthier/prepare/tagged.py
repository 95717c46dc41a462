"""Rows whose text carries spans: as tokens with a tag each (BIO, BMES and their kin), or as text with places.

A row is taken apart into units, of which every span is one block, and put together again; whatever was done to the
units in between, the spans are whole and stand where the row says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from luthier.base.records import Json
from luthier.prepare.edits import Unit, Units, changeable, units_of

_TAGS = ("tags", "ner_tags", "labels")
_SPANS = ("spans", "entities", "label", "labels")
_OUTSIDE = ("O", 0, "0", "")
_OPENING = ("B", "S", "U")


@dataclass(frozen=True)
class Block:
    """A span: what is kept together."""

    kind: str
    """Its label; "" where that cannot be told."""
    tokens: tuple[str, ...]
    """Its tokens; one text for a row with places."""
    tags: tuple[Json, ...]
    """A tag for each token, or nothing."""
    spans: tuple[tuple[int, int, Json], ...] = ()
    """For places: start and end inside the block, and the span as it was written."""


@dataclass(frozen=True)
class Tagged:
    """A row taken apart."""

    value: Mapping[str, Json]
    units: Units
    blocks: tuple[Block, ...]
    tags: str | None
    """Column of the tags."""
    spans: str | None
    """Column of the places."""
    characters: bool = False
    """Whether each token is one character."""

    def row(self, units: Units, blocks: Sequence[Block] | None = None) -> dict[str, Json]:
        """The row with other units."""
        known = self.blocks if blocks is None else blocks
        return self._as_tokens(units, known) if self.tags else self._as_text(units, known)

    def _as_tokens(self, units: Units, blocks: Sequence[Block]) -> dict[str, Json]:
        assert self.tags is not None, "rows of tokens have a column of tags"
        outside = next((tag for tag in cast(list[Json], self.value[self.tags]) if tag in _OUTSIDE), "O")
        tokens: list[Json] = []
        tags: list[Json] = []
        for unit in units:
            if unit.block >= 0:
                tokens += blocks[unit.block].tokens
                tags += blocks[unit.block].tags
            else:
                parts = list(unit.text) if self.characters and unit.chinese else unit.text.split() or [unit.text]
                tokens += parts
                tags += [outside] * len(parts)
        return {**self.value, "tokens": tokens, self.tags: tags}

    def _as_text(self, units: Units, blocks: Sequence[Block]) -> dict[str, Json]:
        assert self.spans is not None, "rows with places have a column of them"
        text = ""
        spans: list[Json] = []
        for unit in units:
            if unit.block >= 0:
                block = blocks[unit.block]
                spans += [_moved(span, start + len(text), end + len(text)) for start, end, span in block.spans]
                text += block.tokens[0]
            else:
                text += unit.text
        spans.sort(key=lambda span: _place(span) or (0, 0))
        return {**self.value, "text": text, self.spans: spans}


def take_apart(value: Mapping[str, Json]) -> Tagged | None:
    """A row with tags or spans as units; None for any other row."""
    tokens = value.get("tokens")
    if isinstance(tokens, list):
        for name in _TAGS:
            tags = value.get(name)
            if isinstance(tags, list) and len(tags) == len(tokens) and all(isinstance(word, str) for word in tokens):
                return _of_tokens(value, cast(list[str], tokens), tags, name)
    text = value.get("text")
    if isinstance(text, str):
        for name in _SPANS:
            spans = value.get(name)
            if isinstance(spans, list) and spans and all(_place(span) is not None for span in spans):
                return _of_text(value, text, spans, name)
    return None


def looks_tagged(value: Mapping[str, Json]) -> bool:
    """Whether a row has tokens, or spans that could not be read: its text is then better left alone."""
    return "tokens" in value or any(isinstance(value.get(name), list) and value[name] for name in ("spans", "entities"))


def spans_of(tags: Sequence[Json]) -> list[tuple[int, int, str]]:
    """Start, end and label of each span in tags like B-X, M-X, I-X, E-X, S-X; for other tags, runs that are not O."""
    found: list[tuple[int, int, str]] = []
    start, kind = -1, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, rest = str(tag).partition("-")
        opens = prefix in _OPENING and bool(rest)
        if start >= 0 and (tag in _OUTSIDE or opens or (rest and rest != kind)):
            found.append((start, place, kind))
            start = -1
        if tag not in _OUTSIDE and start < 0:
            start, kind = place, rest
    return found


def _of_tokens(value: Mapping[str, Json], tokens: list[str], tags: list[Json], name: str) -> Tagged:
    characters = sum(len(token) == 1 for token in tokens) == len(tokens)
    units: Units = []
    blocks: list[Block] = []
    before = 0
    for start, end, kind in [*spans_of(tags), (len(tokens), len(tokens), "")]:
        outside = tokens[before:start]
        if characters:
            units += units_of("".join(outside))
        else:
            units += [Unit(token, changeable(token), units_of(token)[0].chinese) for token in outside if token]
        if end > start:
            units.append(Unit("".join(tokens[start:end]), block=len(blocks)))
            blocks.append(Block(kind, tuple(tokens[start:end]), tuple(tags[start:end])))
        before = end
    return Tagged(value, units, tuple(blocks), name, None, characters)


def _of_text(value: Mapping[str, Json], text: str, spans: list[Json], name: str) -> Tagged | None:
    places = sorted(((*cast(tuple[int, int], _place(span)), span) for span in spans), key=lambda item: item[:2])
    if any(not 0 <= start <= end <= len(text) for start, end, _ in places):
        return None
    units: Units = []
    blocks: list[Block] = []
    before = number = 0
    while number < len(places):
        start, end, _ = places[number]
        inside = [places[number]]
        while number + len(inside) < len(places) and places[number + len(inside)][0] < end:  # overlapping spans
            inside.append(places[number + len(inside)])
            end = max(end, inside[-1][1])
        units += [*units_of(text[before:start]), Unit(text[start:end], block=len(blocks))]
        kind = str(_kind(inside[0][2])) if len(inside) == 1 else ""
        moved = tuple((first - start, last - start, span) for first, last, span in inside)
        blocks.append(Block(kind, (text[start:end],), (), moved))
        before, number = end, number + len(inside)
    units += units_of(text[before:])
    return Tagged(value, units, tuple(blocks), None, name)


def _place(span: Json) -> tuple[int, int] | None:
    """Start and end of a span written as {"start", "end"} or [start, end, label]."""
    pair: Any = None
    if isinstance(span, dict):
        pair = (span.get("start", span.get("start_offset")), span.get("end", span.get("end_offset")))
    elif isinstance(span, list) and len(span) == 3:
        pair = (span[0], span[1])
    if pair is None or not all(isinstance(number, int) and not isinstance(number, bool) for number in pair):
        return None
    return pair


def _kind(span: Json) -> Json:
    if isinstance(span, dict):
        return span.get("label", span.get("labels", span.get("type", "")))
    return span[2] if isinstance(span, list) else ""


def _moved(span: Json, start: int, end: int) -> Json:
    if isinstance(span, list):
        return [start, end, span[2]]
    assert isinstance(span, dict), "spans are objects or lists"
    names = ("start", "end") if "start" in span else ("start_offset", "end_offset")
    return {**span, names[0]: start, names[1]: end}
