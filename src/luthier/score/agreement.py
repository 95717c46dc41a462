"""How far annotators agree beyond chance.

Legend: N items, A annotators, K classes.

Sources: J. Cohen, "A coefficient of agreement for nominal scales" (1960); J. Fleiss, "Measuring nominal scale agreement
among many raters" (1971); K. Krippendorff, "Computing Krippendorff's alpha-reliability" (2011).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["nominal", "ordinal", "interval"]
Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratings:
    """What each annotator said of each item."""

    codes_NA: Codes
    """Position of the answer in `classes`; -1 where an annotator said nothing."""
    classes: tuple[Hashable, ...]
    """The different answers: numbers by size, everything else by its text."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[Hashable | None]]) -> Ratings:
        """From the answers to each item, one for each annotator; None is no answer.

        Raises:
            ValueError: the items differ in their number of annotators.
        """
        if len({len(row) for row in rows}) > 1:
            raise ValueError("every item needs one place for each annotator")
        found = {answer for row in rows for answer in row if answer is not None}
        classes = tuple(sorted(found, key=_order))
        number = {answer: code for code, answer in enumerate(classes)}
        codes = [[-1 if answer is None else number[answer] for answer in row] for row in rows]
        return cls(np.array(codes, np.int64).reshape(len(rows), -1), classes)

    @property
    def counts_NK(self) -> Codes:
        """How many annotators put each item into each class."""
        counts = np.zeros((len(self.codes_NA), len(self.classes)), np.int64)
        items, annotators = np.nonzero(self.codes_NA >= 0)
        np.add.at(counts, (items, self.codes_NA[items, annotators]), 1)
        return counts

    @property
    def values_K(self) -> Floats:
        """The classes as numbers, for intervals.

        Raises:
            ValueError: a class is no number.
        """
        try:
            return np.array([float(str(answer)) for answer in self.classes])
        except ValueError as error:
            raise ValueError(f"an interval scale needs numbers: {error}") from error


def _order(answer: Hashable) -> tuple[int, float, str]:
    try:
        return 0, float(str(answer)), ""
    except ValueError:
        return 1, 0.0, str(answer)


def cohen_kappa(one_N: Codes, other_N: Codes, classes: int) -> float:
    """Agreement of two annotators beyond chance: 1 is perfect, 0 is chance.

        kappa = 1 - sum of observed / sum of expected, over pairs of different classes

    Args:
        one_N, other_N: class of each item; items where either is -1 are left out.
        classes: K.

    Returns:
        NaN where nothing is shared or both always say the same one thing.
    """
    both = (one_N >= 0) & (other_N >= 0)
    observed = np.zeros((classes, classes))
    np.add.at(observed, (one_N[both], other_N[both]), 1.0)
    total = observed.sum()
    if total == 0:
        return math.nan
    apart = 1.0 - np.eye(classes)
    expected = observed.sum(axis=1)[:, None] * observed.sum(axis=0)[None, :] / total
    chance = float((apart * expected).sum())
    return 1.0 - float((apart * observed).sum()) / chance if chance > 0 else math.nan


def fleiss_kappa(counts_NK: Codes) -> float:
    """Agreement of any number of annotators beyond chance, each item judged by equally many.

    Returns:
        NaN where all answers are one class.

    Raises:
        ValueError: items with different numbers of answers, or fewer than two.
    """
    raters = _raters(counts_NK)
    shares_K = counts_NK.sum(axis=0) / counts_NK.sum()
    agreed_N = (counts_NK * (counts_NK - 1)).sum(axis=1) / (raters * (raters - 1))
    chance = float((shares_K**2).sum())
    return (float(agreed_N.mean()) - chance) / (1 - chance) if chance < 1 else math.nan


def _raters(counts_NK: Codes) -> int:
    raters = np.unique(counts_NK.sum(axis=1))
    if len(raters) != 1 or raters[0] < 2:
        raise ValueError("every item needs the same number of answers, at least two; Krippendorff's alpha does not")
    return int(raters[0])


def krippendorff_alpha(ratings: Ratings, level: Level = "nominal") -> float:
    """Agreement beyond chance with any number of annotators and missing answers.

    Args:
        level: what a difference between two classes means: nominal, all alike; ordinal, how many answers lie between
            them; interval, the square of their difference.

    Returns:
        NaN where no item has two answers, or all answers are one class.

    Raises:
        ValueError: an interval scale whose classes are not numbers.
    """
    counts_NK = ratings.counts_NK
    counts_NK = counts_NK[counts_NK.sum(axis=1) > 1].astype(np.float64)
    if not len(counts_NK):
        return math.nan
    pairs_N = counts_NK.sum(axis=1) - 1
    scaled_NK = counts_NK / pairs_N[:, None]
    observed_KK = counts_NK.T @ scaled_NK - np.diag(scaled_NK.sum(axis=0))
    total_K = counts_NK.sum(axis=0)
    expected_KK = (np.outer(total_K, total_K) - np.diag(total_K)) / (total_K.sum() - 1)
    apart_KK = _differences(ratings, total_K, level)
    chance = float((expected_KK * apart_KK).sum())
    return 1.0 - float((observed_KK * apart_KK).sum()) / chance if chance > 0 else math.nan


def _differences(ratings: Ratings, total_K: Floats, level: Level) -> Floats:
    """Squared differences between classes, [K, K]."""
    if level == "nominal":
        return 1.0 - np.eye(len(total_K))
    # On an ordinal scale a class stands at the middle of the answers that it holds.
    places_K = ratings.values_K if level == "interval" else np.cumsum(total_K) - total_K / 2
    return (places_K[:, None] - places_K[None, :]) ** 2


def alpha_by_class(ratings: Ratings) -> Floats:
    """Krippendorff's nominal alpha of each class against all others, [K]."""
    found = np.full(len(ratings.classes), np.nan)
    for code in range(len(ratings.classes)):
        codes = np.where(ratings.codes_NA < 0, -1, (ratings.codes_NA == code).astype(np.int64))
        found[code] = krippendorff_alpha(Ratings(codes, (False, True)))
    return found


@dataclass(frozen=True)
class Annotator:
    """How one annotator compares with the others."""

    answers: int
    """Items this annotator judged."""
    kappa: float
    """Mean of Cohen's kappa with every other annotator; NaN where none can be computed."""
    with_majority: float
    """Share of answers that are also what most of the others said, where these have one favourite; NaN without any."""
    alpha_without: float
    """Krippendorff's alpha of the others alone: far above the whole, this annotator understood the task otherwise."""


def by_annotator(ratings: Ratings, level: Level = "nominal") -> list[Annotator]:
    """Every annotator against the others, in the order of the columns."""
    codes_NA, size = ratings.codes_NA, len(ratings.classes)
    counts_NK = ratings.counts_NK
    found: list[Annotator] = []
    for mine in range(codes_NA.shape[1]):
        others = np.delete(codes_NA, mine, axis=1)
        kappas = [cohen_kappa(codes_NA[:, mine], others[:, other], size) for other in range(others.shape[1])]
        known = [kappa for kappa in kappas if not math.isnan(kappa)]
        said = np.flatnonzero(codes_NA[:, mine] >= 0)
        rest_NK = counts_NK[said].copy()
        rest_NK[np.arange(len(said)), codes_NA[said, mine]] -= 1
        most = rest_NK.max(axis=1, initial=0)
        clear = (most > 0) & ((rest_NK == most[:, None]).sum(axis=1) == 1)
        same = rest_NK.argmax(axis=1)[clear] == codes_NA[said, mine][clear] if size else clear[:0]
        found.append(
            Annotator(
                answers=len(said),
                kappa=float(np.mean(known)) if known else math.nan,
                with_majority=float(same.mean()) if len(same) else math.nan,
                alpha_without=krippendorff_alpha(Ratings(others, ratings.classes), level),
            )
        )
    return found


def majority(ratings: Ratings) -> tuple[Codes, Floats]:
    """What most said of each item (-1 for a tie or no answer), [N], and the share of answers that say so, [N]."""
    counts_NK = ratings.counts_NK
    if not counts_NK.shape[1]:
        return np.full(len(counts_NK), -1), np.zeros(len(counts_NK))
    most, total = counts_NK.max(axis=1), counts_NK.sum(axis=1)
    clear = (most > 0) & ((counts_NK == most[:, None]).sum(axis=1) == 1)
    return np.where(clear, counts_NK.argmax(axis=1), -1), most / np.maximum(total, 1)
