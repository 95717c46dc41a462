"""Which samples share a pack, and which share a micro-batch.  Pure functions of lengths; no group is ever split."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 16_384
"""Samples packed together: wide enough for tight packs, narrow enough to keep an epoch's order random."""


def best_fit_decreasing(lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Bins of indices whose lengths add up to at most `capacity`.

    Longest first, each into the fullest bin that still holds it.  An item longer than the capacity gets a bin of its
    own.  Bins come in the order they were opened, ties are broken by index, so the result is a pure function.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (space left, bin), sorted
    for index in order.tolist():
        length = int(lengths[index])
        at = bisect_left(room, (length, -1))
        if at == len(room):
            space, chosen = capacity, len(bins)
            bins.append([])
        else:
            space, chosen = room.pop(at)
        bins[chosen].append(index)
        if space > length:
            insort(room, (space - length, chosen))
    return bins


def epoch_packs(
    lengths: NDArray[np.int64], order: NDArray[np.int64], capacity: int, rng: np.random.Generator | None
) -> list[list[int]]:
    """Packs of one epoch: samples in `order`, packed window by window; with `rng` the packs are shuffled."""
    packs: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        for members in best_fit_decreasing(lengths[window], capacity):
            packs.append([int(window[member]) for member in members])
    if rng is None:
        return packs
    return [packs[int(index)] for index in rng.permutation(len(packs))]


def micro_batches(lengths: Sequence[int], capacity: int, ranks: int, *, padded: bool = False) -> list[list[int]]:
    """Split one step's samples into micro-batches of at most `capacity` tokens, a multiple of `ranks` of them.

    Rank r runs micro-batches r, r + ranks, ...; trailing ones are empty where there are fewer samples than needed.
    The loss does not depend on the split, so it is chosen for speed: as few micro-batches as fit, of even size.
    With `padded`, a micro-batch costs rows x longest row, as for models that cannot be packed.
    """
    bins = _padded_bins(lengths, capacity) if padded else best_fit_decreasing(lengths, capacity)
    count = -(-len(bins) // ranks) * ranks
    if not padded:
        even = _even_bins(lengths, count)
        if max((sum(lengths[index] for index in members) for members in even), default=0) <= capacity:
            bins = even
    return [sorted(members) for members in bins] + [[] for _ in range(count - len(bins))]


def _even_bins(lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` bins of nearly equal sums: longest first, each into the emptiest bin (LPT scheduling)."""
    loads = [(0, number) for number in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        load, chosen = loads.pop(0)
        bins[chosen].append(index)
        insort(loads, (load + lengths[index], chosen))
    return bins


def _padded_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    widest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not bins or (len(bins[-1]) + 1) * widest > capacity:
            bins.append([])
            widest = lengths[index]
        bins[-1].append(index)
    return bins
