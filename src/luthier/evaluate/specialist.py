"""What a model was trained for, and how one that does not talk is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json, Message, Record
from luthier.evaluate.task import How

Prediction = Mapping[str, Json]
"""label and probabilities, labels and probabilities, value, or tags: what `luthier infer` writes for a row."""
Numbers = NDArray[np.float64]


Kind = Literal["language", "targets", "classes", "tags", "vectors", "pairs"]


@dataclass(frozen=True, slots=True)
class Skill:
    """What a model can do.

    kind: language models talk; others write targets for sources, or give classes to texts, tags to words, vectors to
    texts, or scores to pairs.
    """

    kind: Kind = "language"
    labels: tuple[str, ...] = ()
    """Classes or tags, in order."""
    problem: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    """What classes are given: one, several, or a number."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """What columns of its rows are called, and what they mean: {theirs: ours}."""

    @property
    def words(self) -> str:
        """The skill, as the end of "a model that"."""
        return _WORDS[self.kind]

    def can(self, how: How) -> bool:
        """Whether a model of this skill can be asked so."""
        return self.kind in _ASKED[how]


LANGUAGE = Skill()
_COMPARE: tuple[Kind, ...] = ("language", "vectors", "pairs")
_ASKED: Mapping[How, tuple[Kind, ...]] = {
    "choose": ("language",),
    "generate": ("language", "targets"),
    "read": ("language",),
    "retrieve": ("language", "vectors"),
    "rank": _COMPARE,
    "relate": _COMPARE,
    "label": ("classes",),
    "tag": ("tags",),
}

_WORDS = {
    "language": "talks",
    "targets": "reads sources and writes targets",
    "classes": "classifies texts",
    "tags": "tags words",
    "vectors": "makes vectors of texts",
    "pairs": "scores texts for a query",
}


class Embeds(Protocol):
    """Makes vectors of texts, or of queries."""

    def __call__(self, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
        """float32 [texts, D], of length 1."""
        ...


@dataclass(frozen=True, slots=True)
class Specialist:
    """A model that does not talk, by what it can do."""

    name: str
    """As it stands in the table of results."""
    skill: Skill
    predict: Callable[[Sequence[Record]], Sequence[Prediction]] | None = None
    """Classes and tags."""
    targets: Callable[[Sequence[Sequence[Message]]], Sequence[str]] | None = None
    """What is written for each chat, of which the answer is left out."""
    embeddings: Embeds | None = None
    pair_scores: Callable[[Sequence[tuple[str, str]]], Numbers] | None = None
    """How well each text, the second one, answers its query.  float64 [pairs]"""

    def likeness(self, pairs: Sequence[tuple[str, str]]) -> Numbers:
        """How well each text answers its query, or how alike they are.  float64 [pairs]"""
        if self.pair_scores is not None:
            return self.pair_scores(pairs)
        assert self.embeddings is not None, "only models that compare texts are asked to"
        return cosines(self.embeddings, pairs)


def cosines(embeddings: Embeds, pairs: Sequence[tuple[str, str]]) -> Numbers:
    """The cosine of each query and text; equal texts are embedded once.  float64 [pairs]"""
    sides: list[NDArray[np.float32]] = []
    for side, queries in ((0, True), (1, False)):
        place = {text: number for number, text in enumerate(dict.fromkeys(pair[side] for pair in pairs))}
        vectors = embeddings(list(place), queries=queries)
        sides.append(vectors[[place[pair[side]] for pair in pairs]] if pairs else vectors)
    return (sides[0].astype(np.float64) * sides[1]).sum(axis=1)
