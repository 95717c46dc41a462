"""What is written down about a validation set: each row's prediction, each class's scores, who is taken for whom.

Legend: C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json


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
