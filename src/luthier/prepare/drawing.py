"""How many rows of each class or source, and which ones.  Pure functions of counts and a generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.groups import Rows

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]
Weighting = Literal["balanced", "sqrt", "effective"]


def shared_out(total: int, shares: Floats) -> Numbers:
    """Whole numbers in proportion to `shares` that add up to `total`: largest remainders first; int64 [K]."""
    exact = total * shares / shares.sum()
    whole = np.floor(exact).astype(np.int64)
    left = total - int(whole.sum())
    whole[np.argsort(-(exact - whole), kind="stable")[:left]] += 1
    return whole


def tempered(counts: Numbers, temperature: float) -> Floats:
    """Shares in proportion to n ** (1 / T): 1 leaves them, large T makes them equal; float64 [K].

    Source: Arivazhagan et al., "Massively multilingual neural machine translation in the wild" (2019), section 4.2.
    """
    powers = np.where(counts > 0, np.power(np.maximum(counts, 1) / max(1, counts.max()), 1 / temperature), 0.0)
    return powers / powers.sum()


def largest_total(counts: Numbers, shares: Floats) -> int:
    """Rows of the largest mixture in these shares that repeats nothing."""
    used = shares > 0
    return int(np.floor(np.min(counts[used] / (shares[used] / shares.sum())) + 1e-9))


def class_weights(counts: Numbers, weighting: Weighting, beta: float) -> Floats:
    """Loss weight of each class, scaled so that the weights of all rows have mean 1; float64 [K].

    balanced: N / (K n); sqrt: its root; effective: (1 - beta) / (1 - beta ** n), Cui et al., "Class-balanced loss
    based on effective number of samples" (2019).
    """
    present = np.maximum(counts, 1).astype(np.float64)
    raw = {
        "balanced": 1.0 / present,
        "sqrt": 1.0 / np.sqrt(present),
        "effective": (1.0 - beta) / (1.0 - np.power(beta, present)),
    }[weighting]
    return raw * counts.sum() / max(float((raw * counts).sum()), 1e-300)


def draw(rows: Rows, wanted: int, generator: np.random.Generator) -> Rows:
    """`wanted` of the rows: each as often as every other or once more, which ones is drawn; ascending, [M]."""
    if not len(rows) or wanted <= 0:
        return rows[:0]
    times, rest = divmod(wanted, len(rows))
    shuffled = rows.copy()
    generator.shuffle(shuffled)
    drawn = np.concatenate([*[rows] * times, shuffled[:rest]])
    drawn.sort()
    return drawn


def draw_within(rows: Numbers, sizes: Numbers, budget: int, generator: np.random.Generator) -> Numbers:
    """Rows drawn one by one, all before any comes again, until their sizes fill the budget; int64 [M].

    The row that would reach beyond the budget is taken when that is nearer to it.
    """
    total = int(sizes.sum())
    if not len(rows) or total == 0 or budget <= 0:
        return rows[:0]
    times, rest = divmod(budget, total)
    order = generator.permutation(len(rows))
    filled = np.cumsum(sizes[order])
    taken = int(np.searchsorted(filled, rest, side="right"))
    if taken < len(rows):
        below = int(filled[taken - 1]) if taken else 0
        taken += bool(rest - below > filled[taken] - rest)
    repeats = np.full(len(rows), times)
    repeats[order[:taken]] += 1
    return np.repeat(rows, repeats)


def interleaved(parts: Sequence[Numbers]) -> Numbers:
    """The parts as one sequence in which each is spread evenly from beginning to end; int64 [M]."""
    places = [(np.arange(len(part)) + 0.5) / max(1, len(part)) for part in parts]
    source = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.lexsort((source, np.concatenate(places)))
    return np.concatenate(parts)[order]
