"""What a classifier did on its validation set: each row's prediction, each class's scores, who is taken for whom.

Legend: S rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from luthier.base.records import Json
from luthier.objectives.classify import Classification
from luthier.objectives.tag import Tagging
from luthier.score import entities
from luthier.score.labels import confusion, count, precision_recall_f1


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class, or one type of entity."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    """How often it was wanted."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What is written down about a validation set."""

    predictions: dict[int, dict[str, Json]]
    """What was predicted and what was wanted, by sample."""
    classes: list[ClassRow]
    confusion_CC: NDArray[np.int64] | None
    """How often each class was wanted (row) and predicted (column), where each row has one."""


def find(objective: object, outputs: Mapping[str, Tensor]) -> Findings | None:
    """The findings of an objective that classifies; None for others, and before anything was judged."""
    if not outputs:
        return None
    if isinstance(objective, Classification):
        return _classified(objective, outputs)
    return _tagged(objective, outputs) if isinstance(objective, Tagging) else None


def _classified(objective: Classification, outputs: Mapping[str, Tensor]) -> Findings:
    samples: list[int] = outputs["sample"].tolist()
    answers = [objective.answer(scores_C) for scores_C in outputs["scores"]]
    if objective.problem == "regression":
        numbers: list[list[float]] = outputs["reference"].tolist()
        wanted: list[Json] = [round(values[0], 6) for values in numbers]
        return Findings(_joined(samples, answers, wanted), [], None)
    hits_SC, wanted_SC = objective.flags(outputs)
    counts = count(hits_SC, wanted_SC)
    each = precision_recall_f1(counts.hits, counts.predicted, counts.wanted)
    classes = [
        ClassRow(name, float(each[0][n]), float(each[1][n]), float(each[2][n]), int(counts.wanted[n]))
        for n, name in enumerate(objective.labels)
    ]
    names = [[objective.labels[n] for n in np.flatnonzero(row)] for row in wanted_SC]
    if objective.problem == "multi_label_classification":
        return Findings(_joined(samples, answers, [list[Json](row) for row in names]), classes, None)
    table = confusion(hits_SC.argmax(1), wanted_SC.argmax(1), len(objective.labels))
    return Findings(_joined(samples, answers, [row[0] for row in names]), classes, table)


def _joined(samples: list[int], answers: list[dict[str, Json]], wanted: list[Json]) -> dict[int, dict[str, Json]]:
    """By sample, in the order of the set."""
    rows = {sample: {"reference": ref, **answer} for sample, answer, ref in zip(samples, answers, wanted, strict=True)}
    return dict(sorted(rows.items()))


def _tagged(objective: Tagging, outputs: Mapping[str, Tensor]) -> Findings:
    predicted, wanted = objective.sequences(outputs)
    samples: list[int] = sorted(set(outputs["sample"].tolist()))
    rows: dict[int, dict[str, Json]] = {
        sample: {"reference": list[Json](theirs), "tags": list[Json](mine)}
        for sample, mine, theirs in zip(samples, predicted, wanted, strict=True)
    }
    each = entities.by_type(predicted, wanted) if objective.scheme != "none" else {}
    classes: list[ClassRow] = []
    for name, counts in each.items():
        precision, recall, f1 = precision_recall_f1(*counts)
        classes.append(ClassRow(name, float(precision), float(recall), float(f1), counts[2]))
    return Findings(rows, classes, None)
