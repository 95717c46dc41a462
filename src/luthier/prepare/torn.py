"""Tags that break their scheme: entities that go on without having begun, or end without an end.

What is torn depends on the scheme, which one row seldom shows: `B O` is whole in BIO and torn in BMES.  So a row's tags
are counted for the whole set first, and judged by what all rows say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.base.records import Json
from luthier.prepare.frame import Frame
from luthier.prepare.parcel import Batch, Parcel, Value
from luthier.score import entities

Ends = Literal["open", "closed"]
"""Whether the tags of a scheme say where an entity ends: BIO does not; BIOES, BMES and BILOU do."""

ENDS: tuple[Ends, ...] = ("open", "closed")

_TAGS = ("tags", "ner_tags", "labels")
_PLAIN, _BEGINS = "plain", "begins"


def tags_of(value: Value) -> list[str] | None:
    """The tags of a row of tokens; None where it has none, or they are numbers whose names nobody knows."""
    tokens = value.get("tokens")
    if not isinstance(tokens, list):
        return None
    for name in _TAGS:
        tags = value.get(name)
        if isinstance(tags, list) and len(tags) == len(tokens):
            return [tag for tag in tags if isinstance(tag, str)] if all(isinstance(tag, str) for tag in tags) else None
    return None


def signs(tags: list[str]) -> Iterator[str]:
    """What a row shows of its set's scheme, by names that are counted."""
    letters = {entities.letter_of(tag) for tag in tags}
    yield from (_PLAIN if letter is None else letter for letter in letters)
    before = ["O", *tags[:-1]]
    if any(
        tag[0] == "B" and (last == "O" or last[1:] != tag[1:]) for last, tag in zip(before, tags, strict=True) if tag
    ):
        yield _BEGINS


def ends_of(counts: Mapping[str, int]) -> Ends | None:
    """How the entities of a set end, by the `signs` of its rows.

    None for plain classes, and for tags whose B only parts two neighbours (IOB1): there I may begin.
    """
    letters = [name for name in counts if name not in (_PLAIN, _BEGINS)]
    if _PLAIN in counts:
        return None
    scheme = entities.scheme_of(letters)
    if scheme == "BIO":
        return "open" if _BEGINS in counts else None
    return None if scheme == "none" else "closed"


def torn_at(tags: list[str], ends: Ends) -> dict[str, Json] | None:
    """Where a row's tags are torn, and what stands there; None where they are whole."""
    place = entities.torn(tags, closed=ends == "closed")
    return None if place is None else {"token": place, "tags": " ".join(tags[max(0, place - 1) : place + 2])}


@dataclass(frozen=True)
class _Signs:
    """Counts the signs of all rows."""

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            for sign in signs(tags_of(item.value) or []):
                parcel.tally.count(sign)
        return parcel


def survey(rows: Frame) -> Ends | None:
    """How the entities of a set end; one pass."""
    return ends_of(rows.measure(_Signs(), "Looking at tags").tally.counts)
