"""Tags told as places in a text: [start, end, label] in characters, and what they are for each word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from luthier.base.records import Json

Span = tuple[int, int, str]
"""Start, end (exclusive) and label."""
Place = tuple[int, int]
"""Where a word lies in its text: start and end (exclusive)."""

NAMED = ("spans", "entities")
"""Columns that hold spans; `label` and `labels` may."""
_KINDS = ("label", "type", "tag", "entity", "entity_group")
# A Chinese or Japanese character, a Hangul syllable run or any other run of letters and digits, or a mark.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")


def span_of(value: Json) -> Span | None:
    """A span written as [start, end, label] or as an object; None for anything else."""
    if isinstance(value, list) and len(value) == 3:
        start, end, label = value
    elif isinstance(value, dict):
        start, end = value.get("start"), value.get("end")
        label = next((value[name] for name in _KINDS if name in value), None)
    else:
        return None
    whole = [place for place in (start, end) if isinstance(place, int) and not isinstance(place, bool)]
    return (whole[0], whole[1], label) if len(whole) == 2 and isinstance(label, str) and label else None


def fault_of(spans: Sequence[Span], length: int) -> tuple[str, int] | None:
    """What is wrong with spans of a text of so many characters, and with which of them; None where nothing is."""
    for number, (start, end, _) in enumerate(spans):
        if not 0 <= start < end <= length:
            return f"[{start}, {end}) lies outside the text of {length} characters or is empty", number
    order = sorted(range(len(spans)), key=lambda number: spans[number][:2])
    for before, after in pairwise(order):
        if spans[after][0] < spans[before][1]:
            return "spans overlap, and a word has one tag", after
    return None


def words_in(text: str, spans: Iterable[Span] = ()) -> list[Place]:
    """The words of a text: each Chinese character, each run of other letters, each mark; cut where a span begins or
    ends inside one."""
    edges = sorted({edge for start, end, _ in spans for edge in (start, end)})
    found: list[Place] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        cuts = [start, *(edge for edge in edges if start < edge < end), end]
        found += pairwise(cuts)
    return found


def bio(words: Sequence[Place], spans: Sequence[Span]) -> list[str]:
    """The tag of each word: B-label where a span begins, I-label inside it, O elsewhere."""
    tags = ["O"] * len(words)
    for start, end, label in spans:
        inside = [number for number, (first, last) in enumerate(words) if start <= first and last <= end]
        for place, number in enumerate(inside):
            tags[number] = f"{'I' if place else 'B'}-{label}"
    return tags
