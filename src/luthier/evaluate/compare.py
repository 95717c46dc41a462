"""Two sets of results for the same questions: what changed, and how sure that is.

Legend: N questions, K draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.evaluate.task import MACRO_F1, PEARSON, R2, SPEARMAN, Result, counted, metric, metric_names

DRAWS = 1000
_LOWER_IS_BETTER = {"bits_per_byte", "perplexity", "mse", "mae"}


@dataclass(frozen=True, slots=True)
class Change:
    """One metric before and after, over the questions that both have answered.

    The interval is that of the difference: the middle 95 % of what it is over questions drawn again with replacement
    (paired percentile bootstrap, Efron 1979).
    """

    dataset: str
    metric: str
    subset: str
    num: int
    before: float
    after: float
    low: float
    high: float
    wins: int
    """Questions that fare better after."""
    losses: int

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out; never where nothing counted."""
        return self.low > 0 or self.high < 0


def changes(
    dataset: str,
    subset: str,
    before: Sequence[Result],
    after: Sequence[Result],
    joint: Sequence[str] = (),
    seed: int = 42,
) -> list[Change]:
    """Every metric of a subset that there was before and is after; a choice between both is neither's.

    Args:
        joint: metrics of all questions together, besides those of each.
    """
    known = {result.key: result for result in before}
    pairs = [(known[result.key], result) for result in after if result.key in known]
    old, new = [one for one, _ in pairs], [other for _, other in pairs]
    found: list[Change] = []
    shared = set(metric_names(old))
    for name in [*(name for name in metric_names(new) if name in shared), *joint]:
        draws = _differences(name, old, new, np.random.default_rng(seed))
        known_spread = len(pairs) > 1 and np.isfinite(draws).any()  # one question drawn again is itself
        low, high = np.nanpercentile(draws, [2.5, 97.5]) if known_spread else (math.nan, math.nan)
        wins, losses = _sides(name, pairs)
        then, now = metric(name, old), metric(name, new)
        found.append(Change(dataset, name, subset, len(pairs), then, now, float(low), float(high), wins, losses))
    return found


def _differences(
    name: str, old: Sequence[Result], new: Sequence[Result], draw: np.random.Generator
) -> NDArray[np.float64]:
    """The difference over K sets of questions drawn with replacement, float64 [K]."""
    size = len(new)
    if not size:
        return np.full(1, math.nan)
    after, before = counted(name, new), counted(name, old)
    found = np.empty(DRAWS)
    for number in range(DRAWS):
        draws_N = np.bincount(draw.integers(size, size=size), minlength=size).astype(np.float64)
        found[number] = after.value(draws_N) - before.value(draws_N)
    return found


def _sides(name: str, pairs: Sequence[tuple[Result, Result]]) -> tuple[int, int]:
    """Questions that fare better and worse after; for the F1 of classes those that became right and wrong.

    A single question has no correlation, and neither wins nor loses.
    """
    wins = losses = 0
    if name in (PEARSON, SPEARMAN, R2):
        return 0, 0
    for one, other in pairs:
        if name == MACRO_F1:
            change = float(other.prediction == other.reference) - float(one.prediction == one.reference)
        else:
            change = _value(name, other) - _value(name, one)
        better = -change if name in _LOWER_IS_BETTER else change
        wins, losses = wins + (better > 1e-9), losses + (better < -1e-9)
    return wins, losses


def _value(name: str, result: Result) -> float:
    total, count = result.rates.get(name, (0.0, 0.0))
    return total / count if count else 0.0
