"""The nouns of an evaluation: questions, what was found for each, and the scores of all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.records import Json, Message, Record, Where
from luthier.score.labels import precision_recall_f1
from luthier.score.ranking import pearson, spearman

Rates = Mapping[str, tuple[float, float]]
"""Each metric of one question as (sum, count); the metric of a set is all sums over all counts."""

Marker = Callable[["Item", str], Rates]
"""What a generated answer is worth."""

MACRO_F1, PEARSON, SPEARMAN, R2 = "macro-f1", "pearson", "spearman", "r2"
"""Metrics that are no mean over questions but made of all of them together: of the classes that were found and wanted,
or of the numbers."""
Joint = str
_NOWHERE = Where("", 0)
_TEXTS = ("key", "asked", "question", "prediction", "reference")


How = Literal["choose", "generate", "read", "retrieve", "rank", "relate", "label", "tag"]
"""Choose among options by likelihood, generate an answer, read a text; find documents, put a query's texts in order,
say how alike two texts are; give a text its classes, words their tags."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question."""

    key: str
    """Its name inside the subset."""
    messages: tuple[Message, ...]
    """The question, worked examples in front of it."""
    references: tuple[str, ...]
    """Right answers: letters, labels or texts."""
    options: tuple[str, ...] = ()
    """Answers to choose from, as a model would write them."""
    names: tuple[str, ...] = ()
    """What each option stands for: a letter or a label."""
    record: Record | None = None
    """What a model that does not talk is given in place of messages."""

    @property
    def texts(self) -> bool:
        """Whether the options are texts of their own, and not names written out."""
        return all(not option.endswith(name) for option, name in zip(self.options, self.names, strict=True))


def unmarked(item: Item, text: str) -> Rates:
    """The marker of what is no generated answer."""
    return {}


@dataclass(frozen=True, slots=True)
class Task:
    """Questions of one subset of a data set that are asked and scored alike."""

    dataset: str
    subset: str
    items: tuple[Item, ...]
    how: How
    """How a model is asked."""
    mark: Marker
    max_new_tokens: int = 512
    classes: tuple[str, ...] = ()
    """The labels of a classification."""
    joint: tuple[Joint, ...] = ()
    """Metrics of all questions together."""
    metrics: tuple[str, ...] = ()
    """Metrics that are wanted; none: all."""
    documents: tuple[tuple[str, str], ...] = ()
    """Names and texts of what is searched."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was found for one question."""

    key: str
    asked: str
    """Hash of everything the answer depends on besides the model."""
    question: str
    prediction: str
    reference: str
    rates: Rates
    detail: Mapping[str, Json] = field(default_factory=dict[str, Json])

    def line(self) -> dict[str, Json]:
        """As a JSON object."""
        rates: dict[str, Json] = {name: list(rate) for name, rate in self.rates.items()}
        return {**{k: v for k, v in asdict(self).items() if k not in ("rates", "detail")}, "rates": rates} | (
            {"detail": dict(self.detail)} if self.detail else {}
        )

    @classmethod
    def of(cls, line: Mapping[str, Json]) -> Result:
        """From `line`.  Raises KeyError or TypeError for anything else."""
        rates, detail = line["rates"], line.get("detail") or {}
        if not isinstance(rates, dict) or not isinstance(detail, dict):
            raise TypeError("not a result")
        pairs = {name: (float(pair[0]), float(pair[1])) for name, pair in rates.items() if isinstance(pair, list)}  # pyright: ignore[reportArgumentType]
        key, asked, question, prediction, reference = (str(line[name]) for name in _TEXTS)
        return cls(key, asked, question, prediction, reference, pairs, detail)


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one subset."""

    dataset: str
    metric: str
    subset: str
    num: int
    score: float


def asked_hash(item: Item, *how: Json) -> str:
    """Hash of a question and how it is asked."""
    content = [asdict(message) for message in item.messages], item.references, item.options, item.names, how
    if item.record is not None:
        content = *content, asdict(replace(item.record, where=_NOWHERE))
    return hashlib.blake2b(orjson.dumps(content), digest_size=8).hexdigest()


def metric_names(results: Sequence[Result]) -> list[str]:
    """All metrics of some results, in order."""
    return list(dict.fromkeys(name for result in results for name in result.rates))


class Counted(Protocol):
    """One metric of some results, ready to be computed for any drawing of them."""

    def value(self, draws_N: NDArray[np.float64]) -> float:
        """The metric where each result is drawn so many times; NaN where nothing counts."""
        ...


def counted(name: str, results: Sequence[Result]) -> Counted:
    """Look a metric up in some results."""
    if name == MACRO_F1:
        return _Classes.of(results)
    if name in (PEARSON, SPEARMAN, R2):
        return _Numbers.of(name, results)
    rates = [result.rates.get(name, (0.0, 0.0)) for result in results]
    return _Means(name, np.array(rates, np.float64).reshape(-1, 2))


@dataclass(frozen=True, slots=True)
class _Means:
    """All sums over all counts."""

    name: str
    rates_N2: NDArray[np.float64]

    def value(self, draws_N: NDArray[np.float64]) -> float:
        total, count = draws_N @ self.rates_N2
        value = float(total / count) if count else math.nan
        return math.exp(value) if self.name == "perplexity" else value


@dataclass(frozen=True, slots=True)
class _Classes:
    """The mean of the F1 of every class that was found or wanted, as scikit-learn has it.  Legend: M mentions."""

    result_M: NDArray[np.int64]
    class_M: NDArray[np.int64]
    counts_M3: NDArray[np.float64]
    """How often the result has the class rightly, found, wanted."""
    classes: int

    @classmethod
    def of(cls, results: Sequence[Result]) -> _Classes:
        number: dict[str, int] = {}
        mentions: list[tuple[int, int]] = []
        counts: list[tuple[float, float, float]] = []
        for place, result in enumerate(results):
            for name, (right, found, wanted) in class_counts(result).items():
                mentions.append((place, number.setdefault(name, len(number))))
                counts.append((right, found, wanted))
        places_M2 = np.array(mentions, np.int64).reshape(-1, 2)
        return cls(places_M2[:, 0], places_M2[:, 1], np.array(counts, np.float64).reshape(-1, 3), len(number))

    def value(self, draws_N: NDArray[np.float64]) -> float:
        drawn_M = draws_N[self.result_M]
        right, found, wanted = (
            np.bincount(self.class_M, drawn_M * self.counts_M3[:, n], self.classes) for n in range(3)
        )
        there = found + wanted > 0
        return float(precision_recall_f1(right, found, wanted)[2][there].mean()) if there.any() else math.nan


def class_counts(result: Result) -> Mapping[str, tuple[float, float, float]]:
    """How often each class was given rightly, was given, and was wanted.

    What stands in `detail` under `classes`, or else prediction and reference, one class each.
    """
    told = result.detail.get("classes")
    if isinstance(told, dict):
        rows = {name: row for name, row in told.items() if isinstance(row, list)}
        return {name: (float(str(r[0])), float(str(r[1])), float(str(r[2]))) for name, r in rows.items()}
    if result.prediction == result.reference:
        return {result.reference: (1.0, 1.0, 1.0)}
    return {result.prediction: (0.0, 1.0, 0.0), result.reference: (0.0, 0.0, 1.0)}


@dataclass(frozen=True, slots=True)
class _Numbers:
    """How found numbers go with those that were wanted."""

    name: str
    found_N: NDArray[np.float64]
    wanted_N: NDArray[np.float64]

    @classmethod
    def of(cls, name: str, results: Sequence[Result]) -> _Numbers:
        pairs_N2 = np.array([(float(one.prediction), float(one.reference)) for one in results], np.float64)
        pairs_N2 = pairs_N2.reshape(-1, 2)
        return cls(name, pairs_N2[:, 0], pairs_N2[:, 1])

    def value(self, draws_N: NDArray[np.float64]) -> float:
        times_N = draws_N.astype(np.int64)
        found, wanted = self.found_N.repeat(times_N), self.wanted_N.repeat(times_N)
        if self.name == R2:
            spread = float(((wanted - wanted.mean()) ** 2).sum()) if len(wanted) else 0.0
            return 1.0 - float(((found - wanted) ** 2).sum()) / spread if spread > 0 else math.nan
        return (spearman if self.name == SPEARMAN else pearson)(found, wanted)


def metric(name: str, results: Sequence[Result]) -> float:
    """One metric of some results; NaN where nothing counts."""
    return counted(name, results).value(np.ones(len(results)))


def scores(task: Task, results: Sequence[Result]) -> list[Score]:
    """Every metric of a subset."""
    wanted = [name for name in (*metric_names(results), *task.joint) if not task.metrics or name in task.metrics]
    return [Score(task.dataset, name, task.subset, len(results), metric(name, results)) for name in wanted]
