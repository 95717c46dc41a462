"""Scores of predicted classes and numbers, equal to scikit-learn's.

Legend: S rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.score.ranking import pearson, spearman

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each class was found, each an int64 [C]."""

    hits: NDArray[np.int64]
    """predicted and right"""
    predicted: NDArray[np.int64]
    wanted: NDArray[np.int64]


def count(predicted_SC: Flags, wanted_SC: Flags) -> Counts:
    """Count the classes of rows that may have any number of them."""
    return Counts((predicted_SC & wanted_SC).sum(0), predicted_SC.sum(0), wanted_SC.sum(0))


def precision_recall_f1(hits: Any, predicted: Any, wanted: Any) -> tuple[Numbers, Numbers, Numbers]:
    """Precision, recall and F1, elementwise; 0 where there is nothing to divide by, as scikit-learn has it."""
    hits, predicted, wanted = (np.asarray(value, dtype=np.float64) for value in (hits, predicted, wanted))
    return _share(hits, predicted), _share(hits, wanted), _share(2 * hits, predicted + wanted)


def _share(part: Numbers, all_of_it: Numbers) -> Numbers:
    return np.divide(part, all_of_it, out=np.zeros_like(part), where=all_of_it > 0)


def classified(predicted_SC: Flags, wanted_SC: Flags) -> dict[str, float]:
    """Micro and macro precision, recall and F1.  Macro averages over the classes that occur in either.

    Where every row has one class predicted and one wanted, all micro scores are its accuracy, and are left out.
    """
    found = averages(count(predicted_SC, wanted_SC))
    if bool((predicted_SC.sum(1) == 1).all() and (wanted_SC.sum(1) == 1).all()):
        del found["micro"]
    names = ("precision", "recall", "f1")
    return {
        f"{kind}_{name}": score for kind, scores in found.items() for name, score in zip(names, scores, strict=True)
    }


def averages(counts: Counts) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and F1 by `macro`, the mean over the classes that occur in either, and `micro`, of all counts
    together."""
    there = (counts.predicted + counts.wanted) > 0
    each = precision_recall_f1(counts.hits, counts.predicted, counts.wanted)
    together = precision_recall_f1(counts.hits.sum(), counts.predicted.sum(), counts.wanted.sum())
    macro, micro = ([_mean(part[there]) for part in each], [float(part) for part in together])
    return {"macro": (macro[0], macro[1], macro[2]), "micro": (micro[0], micro[1], micro[2])}


def _mean(values: Numbers) -> float:
    return float(values.mean()) if len(values) else 0.0


def regressed(predicted_S: Numbers, wanted_S: Numbers) -> dict[str, float]:
    """Mean squared and absolute error, share of the variance explained (R2), Pearson's and Spearman's correlation.

    Correlations with a constant are 0, and so is R2 where nothing varies.
    """
    if not len(wanted_S):
        return {}
    errors = predicted_S - wanted_S
    spread = float(((wanted_S - wanted_S.mean()) ** 2).sum())
    return {
        "mse": float((errors**2).mean()),
        "mae": float(np.abs(errors).mean()),
        "r2": 1.0 - float((errors**2).sum()) / spread if spread > 0 else 0.0,
        "pearson": _or_zero(pearson(predicted_S, wanted_S)),
        "spearman": _or_zero(spearman(predicted_S, wanted_S)),
    }


def _or_zero(correlation: float) -> float:
    return 0.0 if np.isnan(correlation) else correlation


def confusion(predicted_S: NDArray[np.int64], wanted_S: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How often each class was wanted (row) and each predicted (column).  int64 [C, C]"""
    return np.bincount(wanted_S * classes + predicted_S, minlength=classes * classes).reshape(classes, classes)
