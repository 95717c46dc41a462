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
        texts = (str(line[name]) for name in ("key", "asked", "question", "prediction", "reference"))
        return cls(*texts, pairs, detail)


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


def metric(name: str, results: Sequence[Result], draws_N: NDArray[np.int64] | None = None) -> float:
    """One metric of some results, each drawn so many times (once by default); NaN where nothing counts."""
    if name == MACRO_F1:
        return _macro_f1(results, draws_N)
    rates = np.array([result.rates.get(name, (0.0, 0.0)) for result in results]).reshape(-1, 2)
    total, count = (rates if draws_N is None else rates * draws_N[:, None]).sum(axis=0)
    value = float(total / count) if count else math.nan
    return math.exp(value) if name == "perplexity" else value


def _macro_f1(results: Sequence[Result], draws_N: NDArray[np.int64] | None) -> float:
    """Mean of the F1 of every class that was predicted or is right, as scikit-learn has it."""
    names = sorted({name for result in results for name in (result.prediction, result.reference)})
    number = {name: place for place, name in enumerate(names)}
    weights = None if draws_N is None else draws_N.astype(np.float64)
    found = np.array([number[result.prediction] for result in results], np.int64)
    wanted = np.array([number[result.reference] for result in results], np.int64)
    size = len(names)
    table = np.bincount(wanted * size + found, weights, size * size).reshape(size, size)
    both = table.sum(axis=0) + table.sum(axis=1)
    there = both > 0
    return float((2 * table.diagonal()[there] / both[there]).mean()) if there.any() else math.nan


def scores(task: Task, results: Sequence[Result]) -> list[Score]:
    """Every metric of a subset."""
    names = metric_names(results) + ([MACRO_F1] if task.classes else [])
    wanted = [name for name in names if not task.metrics or name in task.metrics]
    return [Score(task.dataset, name, task.subset, len(results), metric(name, results)) for name in wanted]
