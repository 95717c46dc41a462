"""Precision, recall and F1 of entities in tagged sequences, equal to seqeval's in its default mode.

An entity counts when its type and both its ends are right.  Tags are BIO, BIOES, BMES or BILOU, told from the tags
themselves; sequences that break a scheme are read as the CoNLL evaluation reads them: what continues nothing begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from luthier.score.labels import Counts, averages

Entity = tuple[str, int, int]
"""Type, first and last token."""
Scheme = Literal["BIO", "BIOES", "BMES", "BILOU", "none"]
_SAME = {"M": "I", "L": "E", "U": "S"}
_LETTERS: dict[frozenset[str], Scheme] = {
    frozenset("BIO"): "BIO",
    frozenset("BIOES"): "BIOES",
    frozenset("BMESO"): "BMES",
    frozenset("BILUO"): "BILOU",
}


def letter_of(tag: str) -> str | None:
    """What a tag says of its place in an entity, O for none; None for a plain class."""
    letter, dash, kind = tag.partition("-")
    return letter if tag == "O" or (len(letter) == 1 and letter in "BIMESLU" and (not dash or kind)) else None


def scheme_of(tags: Iterable[str]) -> Scheme:
    """The scheme that tags are in; `none` for plain classes, such as parts of speech."""
    letters: set[str] = set()
    for tag in tags:
        letter = letter_of(tag)
        if letter is None:
            return "none"
        letters.add(letter)
    if letters <= {"O"}:
        return "none"
    for known, scheme in _LETTERS.items():
        if letters <= known:
            return scheme
    return "none"


def named(tags: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Tags, of which numbers count through the names, from 0 on, unless names are numbers themselves."""
    if any(name.isdecimal() for name in names):
        return tuple(tags)
    return tuple(names[int(tag)] if tag.isdecimal() and int(tag) < len(names) else tag for tag in tags)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sequence, in order."""
    found: list[Entity] = []
    open_type, start, before = "", -1, "O"
    for place, tag in enumerate((*tags, "O")):
        letter, _, kind = tag.partition("-")
        letter = _SAME.get(letter, letter)
        begins = letter != "O" and (letter in "BS" or before in "OES" or kind != open_type)
        if start >= 0 and (begins or letter == "O"):
            found.append((open_type, start, place - 1))
            start = -1
        if begins:
            open_type, start = kind, place
        before = letter
    return found


def torn(tags: Sequence[str], *, closed: bool) -> int | None:
    """The first token whose tag does not go on as a scheme asks; None where all do.

    Args:
        closed: whether an entity says where it ends (BIOES, BMES, BILOU), so that one that stops before is torn too.
    """
    inside: str | None = None
    for place, tag in enumerate((*tags, "O")):
        letter, _, kind = tag.partition("-")
        letter = _SAME.get(letter, letter)
        goes_on = letter in ("I", "E")
        if (goes_on and kind != inside) or (closed and inside is not None and not goes_on):
            return min(place, len(tags) - 1)
        inside = kind if letter in ("B", "I") else None
    return None


def score(predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Micro precision, recall and F1 over all entities, and the mean of the types' F1 (macro)."""
    found = averages(counted(by_type(predicted, wanted)))
    precision, recall, f1 = found["micro"]
    return {"precision": precision, "recall": recall, "f1": f1, "macro_f1": found["macro"][2]}


def counted(each: Mapping[str, tuple[int, int, int]]) -> Counts:
    """What `by_type` has found, in the order of its types."""
    return Counts(*np.array(list(each.values()), dtype=np.int64).reshape(-1, 3).T)


def by_type(predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> dict[str, tuple[int, int, int]]:
    """For each type the entities that were hit, predicted and there."""
    counts = [Counter[str](), Counter[str](), Counter[str]()]
    for mine, theirs in zip(predicted, wanted, strict=True):
        found, there = set(entities(mine)), set(entities(theirs))
        for counter, some in zip(counts, (found & there, found, there), strict=True):
            counter.update(kind for kind, _, _ in some)
    kinds = sorted({*counts[1], *counts[2]})
    return {kind: (counts[0][kind], counts[1][kind], counts[2][kind]) for kind in kinds}
