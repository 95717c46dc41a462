"""Small changes of a text, word by word.  Pure functions of units and a generator.

Source of the first four: Wei and Zou, "EDA: Easy data augmentation techniques" (2019).  What must not change (a tagged
span, a number, code, a negation, which would turn a label round) is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from luthier.prepare.synonyms import Synonyms
from luthier.prepare.words import cut

Edit = Literal["synonym", "insert", "delete", "swap", "mask"]

_NEGATIONS = frozenset(
    """not no never none nothing nobody neither nor without hardly cannot don't doesn't didn't isn't aren't wasn't
    weren't won't wouldn't can't couldn't shouldn't hasn't haven't hadn't
    不 没 没有 无 非 别 未 勿 不是 不能 不会 不要 从不 并非 毫无 绝不 不可 不好 不得""".split()  # noqa: SIM905  (a list is ten lines)
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of a text."""

    text: str
    word: bool = False
    """Whether it may be changed."""
    chinese: bool = False
    block: int = -1
    """Number of the span it is, which is moved and kept as a whole; -1 for none."""


@dataclass(frozen=True)
class Means:
    """What edits need to know."""

    strength: float
    """Share of the words that are changed."""
    synonyms: Synonyms
    mask: str
    spaced: bool = True
    """Whether words in scripts with spaces are units between spaces; False where a list of tokens is edited."""


Units = list[Unit]
Generator = np.random.Generator


def units_of(text: str) -> Units:
    """A text as units without blocks."""
    return [Unit(piece.text, piece.word and piece.text.lower() not in _NEGATIONS, piece.chinese) for piece in cut(text)]


def changeable(token: str) -> bool:
    """Whether a token of a list is a word that may be changed."""
    return token.isalpha() and token.lower() not in _NEGATIONS


def _picked(units: Sequence[Unit], fit: Callable[[Unit], bool], means: Means, generator: Generator) -> list[int]:
    """Places of the words to change: `strength` of all words, one at least, among those that fit."""
    places = [place for place, unit in enumerate(units) if unit.word and fit(unit)]
    number = max(1, round(means.strength * sum(unit.word for unit in units)))
    return sorted(generator.permutation(places)[:number].tolist()) if places else []


def _synonym(units: Units, means: Means, generator: Generator) -> Units:
    made = list(units)
    for place in _picked(units, lambda unit: unit.text.lower() in means.synonyms, means, generator):
        made[place] = replace(made[place], text=_other(made[place].text, means, generator))
    return made


def _other(word: str, means: Means, generator: Generator) -> str:
    others = means.synonyms[word.lower()]
    other = others[int(generator.integers(len(others)))]
    return other[:1].upper() + other[1:] if word[:1].isupper() and not word.isupper() else other


def _insert(units: Units, means: Means, generator: Generator) -> Units:
    """A synonym of a word of the text, put before any word."""
    made = list(units)
    for place in _picked(units, lambda unit: unit.text.lower() in means.synonyms, means, generator):
        word = replace(units[place], text=_other(units[place].text, means, generator).lower())
        before = [at for at, unit in enumerate(made) if unit.word and unit.chinese == word.chinese]
        at = before[int(generator.integers(len(before)))]
        made[at:at] = [word] if word.chinese or not means.spaced else [word, Unit(" ")]
    return made


def _delete(units: Units, means: Means, generator: Generator) -> Units:
    """Some words taken out, each with the space behind it; one always stays."""
    places = set(_picked(units, lambda unit: True, means, generator))
    if sum(unit.word for unit in units) <= len(places):
        places.discard(min(places, default=-1))
    made: Units = []
    for place, unit in enumerate(units):
        space = means.spaced and unit.text.isspace() and unit.block < 0 and place - 1 in places
        if place not in places and not space:
            made.append(unit)
    return made


def _swap(units: Units, means: Means, generator: Generator) -> Units:
    made = list(units)
    places = [place for place, unit in enumerate(units) if unit.word]
    for _ in range(max(1, round(means.strength * len(places))) if len(places) > 1 else 0):
        one, other = generator.choice(places, 2, replace=False).tolist()
        made[one], made[other] = made[other], made[one]
    return made


def _mask(units: Units, means: Means, generator: Generator) -> Units:
    made = list(units)
    for place in _picked(units, lambda unit: True, means, generator):
        made[place] = Unit(means.mask)
    return made


EDITS: dict[Edit, Callable[[Units, Means, Generator], Units]] = {
    "synonym": _synonym,
    "insert": _insert,
    "delete": _delete,
    "swap": _swap,
    "mask": _mask,
}


def edited(text: str, edit: Edit, means: Means, generator: Generator) -> str:
    """A text without spans, changed."""
    return "".join(unit.text for unit in EDITS[edit](units_of(text), means, generator))
