"""What is written down about a validation set: each row's prediction, each class's scores, who is taken for whom.

Legend: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json
from luthier.score.labels import Counts, averages, precision_recall_f1


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
    classes: list[ClassRow] = field(default_factory=list[ClassRow])
    averages: list[ClassRow] = field(default_factory=list[ClassRow])
    """Micro and macro average of the classes."""
    confusion_CC: NDArray[np.int64] | None = None
    """How often each class was wanted (row) and predicted (column), where each row has one."""
    verdicts_C4: NDArray[np.int64] | None = None
    """Where rows may have several: how often each class was found rightly, found wrongly, missed, and rightly left."""


def class_rows(names: Sequence[str], counts: Counts) -> tuple[list[ClassRow], list[ClassRow]]:
    """The scores of each class by its name, and their averages."""
    each = zip(*precision_recall_f1(counts.hits, counts.predicted, counts.wanted), counts.wanted, strict=True)
    rows = [
        ClassRow(name, float(p), float(r), float(f), int(n)) for name, (p, r, f, n) in zip(names, each, strict=True)
    ]
    total = int(counts.wanted.sum())
    return rows, [ClassRow(f"{name} average", *scores, total) for name, scores in averages(counts).items()]
