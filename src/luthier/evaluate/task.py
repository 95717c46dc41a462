"""The nouns of an evaluation: questions, what was found for each, and the scores of all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.records import Json, Message

Rates = Mapping[str, tuple[float, float]]
"""Each metric of one question as (sum, count); the metric of a set is all sums over all counts."""

Marker = Callable[["Item", str], Rates]
"""What a generated answer is worth."""

MACRO_F1 = "macro-f1"
_TEXTS = ("key", "asked", "question", "prediction", "reference")


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


@dataclass(frozen=True, slots=True)
class Task:
    """Questions of one subset of a data set that are asked and scored alike."""

    dataset: str
    subset: str
    items: tuple[Item, ...]
    how: Literal["choose", "generate", "read", "retrieve"]
    """Choose among options by likelihood, generate an answer, read a text, or find documents."""
    mark: Marker
    max_new_tokens: int = 512
    classes: tuple[str, ...] = ()
    """The labels of a classification."""
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
    return hashlib.blake2b(orjson.dumps(content), digest_size=8).hexdigest()


def metric_names(results: Sequence[Result]) -> list[str]:
    """All metrics of some results, in order."""
    return list(dict.fromkeys(name for result in results for name in result.rates))


@dataclass(frozen=True, slots=True)
class Counted:
    """One metric of some results, ready to be summed over any drawing of them.  Legend: N results, C classes."""

    name: str
    rates_N2: NDArray[np.float64]
    """Sum and count of each."""
    pairs_N: NDArray[np.int64]
    """For the F1 of classes: wanted class times C plus found class."""
    classes: int

    @classmethod
    def of(cls, name: str, results: Sequence[Result]) -> Counted:
        """Look a metric up in some results."""
        if name != MACRO_F1:
            rates = [result.rates.get(name, (0.0, 0.0)) for result in results]
            return cls(name, np.array(rates, np.float64).reshape(-1, 2), np.zeros(0, np.int64), 0)
        labels = sorted({label for result in results for label in (result.prediction, result.reference)})
        number = {label: place for place, label in enumerate(labels)}
        pairs = [number[result.reference] * len(labels) + number[result.prediction] for result in results]
        return cls(name, np.zeros((0, 2)), np.array(pairs, np.int64), len(labels))

    def value(self, draws_N: NDArray[np.float64]) -> float:
        """The metric where each result is drawn so many times; NaN where nothing counts."""
        if self.name == MACRO_F1:
            return self._macro_f1(draws_N)
        total, count = draws_N @ self.rates_N2
        value = float(total / count) if count else math.nan
        return math.exp(value) if self.name == "perplexity" else value

    def _macro_f1(self, draws_N: NDArray[np.float64]) -> float:
        """Mean of the F1 of every class that was found or wanted, as scikit-learn has it."""
        table = np.bincount(self.pairs_N, draws_N, self.classes**2).reshape(self.classes, self.classes)
        both = table.sum(axis=0) + table.sum(axis=1)
        there = both > 0
        return float((2 * table.diagonal()[there] / both[there]).mean()) if there.any() else math.nan


def metric(name: str, results: Sequence[Result]) -> float:
    """One metric of some results; NaN where nothing counts."""
    return Counted.of(name, results).value(np.ones(len(results)))


def scores(task: Task, results: Sequence[Result]) -> list[Score]:
    """Every metric of a subset."""
    names = metric_names(results) + ([MACRO_F1] if task.classes else [])
    wanted = [name for name in names if not task.metrics or name in task.metrics]
    return [Score(task.dataset, name, task.subset, len(results), metric(name, results)) for name in wanted]
