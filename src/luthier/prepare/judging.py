"""What rows are chosen by: numbers and embeddings of each row, with and without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json
from luthier.prepare.frame import Frame
from luthier.prepare.models import asked
from luthier.prepare.parcel import Batch, Parcel, packed
from luthier.prepare.selection import sketch
from luthier.prepare.verb import ASKED, Job
from luthier.prepare.view import column, text_of
from luthier.prepare.words import counted

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lengths:
    """Length of each row, float64 [rows]; NaN for rows without the text that is measured."""

    answer: bool
    words: bool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        texts = [asked(item.value).answer if self.answer else text_of(item.value) for item in batch.items]
        sizes = [len(counted(text)) if self.words else len(text) for text in texts]
        scores = [size if text else np.nan for size, text in zip(sizes, texts, strict=True)]
        parcel.columns["score"] = np.array(scores, np.float64)
        return parcel


@dataclass(frozen=True)
class Numbers:
    """The number in a column of each row, float64 [rows]; NaN where there is none."""

    name: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        parcel.columns["score"] = np.array([_number(column(item.value, self.name)) for item in batch.items], np.float64)
        return parcel


def _number(value: Json) -> float:
    try:
        return np.nan if isinstance(value, bool) else float(cast(Any, value))
    except (TypeError, ValueError):
        return np.nan


@dataclass(frozen=True)
class Sketch:
    """An embedding of each row without a model, float32 [rows, D]."""

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        parcel.columns["vector"] = sketch([text_of(item.value) for item in batch.items])
        return parcel


@dataclass(frozen=True)
class _Asked:
    """Question and answer of each row, as lines for the model."""

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            pair = asked(item.value)
            parcel.keep_line(item.file, item.line, packed([pair.prompt, pair.answer]), ASKED)
        return parcel


Judge = Callable[[list[str], list[str]], NDArray[Any]]


def by_model(rows: Frame, job: Job, judge: Judge) -> Floats:
    """A number for each row by its question and answer, a few hundred rows at a time."""

    def judged(pairs: list[tuple[str, str]]) -> Floats:
        return np.asarray(judge([prompt for prompt, _ in pairs], [answer for _, answer in pairs]), np.float64)

    return np.array(job.ask_for_all("Judging rows", rows, _Asked(), judged), np.float64)
