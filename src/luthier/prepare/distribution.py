"""How numbers are distributed of which there is one for each of very many rows: read a block at a time, never held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json
from luthier.prepare.spill import Spill

_BITS = 16
"""Bits of a number by which it is told from others in one reading."""


def known(values: Spill) -> Iterator[NDArray[Any]]:
    """The numbers that are finite, block by block."""
    for block in values.blocks():
        if block.dtype.kind != "f":
            yield block
            continue
        finite = np.isfinite(block)
        yield block if finite.all() else block[finite]


def mean_of(values: Spill) -> float:
    """The mean of the finite numbers; NaN of none."""
    count = _count(values)
    return _sum(known(values)) / count if count else np.nan


def deviation_of(values: Spill, mean: float) -> float:
    """The standard deviation of the population from its mean, of the finite numbers."""
    count = _count(values)
    return float(np.sqrt(_sum((block - mean) ** 2 for block in known(values)) / count)) if count else np.nan


def _count(values: Spill) -> int:
    return sum(map(len, known(values)))


def _sum(blocks: Iterator[NDArray[Any]]) -> float:
    """Rounded once, so that it does not matter where one block ends and the next begins."""
    return fsum(chain.from_iterable(block.tolist() for block in blocks))


def quantiles(values: Spill, marks: Sequence[float]) -> NDArray[np.float64]:
    """What `np.quantile` of the finite numbers is, to the last bit, in less than ten MiB; NaN of none.

    Args:
        values: int32 or float64.
        marks: quantiles, 0 to 1.
    """
    return np.array([np.quantile(pair, between) for pair, between in _around(values, marks)])


def median_of(values: Spill) -> float:
    """What `np.median` of the finite numbers is; NaN of none."""
    ((pair, between),) = _around(values, (0.5,))
    return float(pair.mean() if between else pair[0])


def _around(values: Spill, marks: Sequence[float]) -> list[tuple[NDArray[Any], float]]:
    """For each quantile the numbers before and behind it [2], and how far it lies between them, 0 to 1."""
    count = _count(values)
    if not count:
        return [(np.full(2, np.nan), 0.0)] * len(marks)
    places = (count - 1) * np.asarray(marks, np.float64)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    ranks = np.unique(np.concatenate([low, high]))
    found = _ranked(values, ranks)
    return list(zip(found[np.searchsorted(ranks, np.stack([low, high], axis=1))], (places - low).tolist(), strict=True))


def _ranked(values: Spill, ranks: NDArray[np.int64]) -> NDArray[Any]:
    """The numbers at some places (ascending, from 0) of their order.

    Each reading counts how many numbers have which next bits, among those that begin as the ones looked for do.
    """
    beginnings: dict[int, list[int]] = {0: ranks.tolist()}  # leading bits, and places among the numbers that have them
    bits = values.dtype.itemsize * 8
    for shift in range(bits - _BITS, -1, -_BITS):
        counts = {beginning: np.zeros(2**_BITS, np.int64) for beginning in beginnings}
        for block in known(values):
            keys = _ordered(block)
            starts = keys >> np.uint64(shift + _BITS) if shift + _BITS < bits else np.zeros(len(keys), np.uint64)
            for beginning, count in counts.items():
                mine = keys[starts == beginning] if shift + _BITS < bits else keys
                count += np.bincount((mine >> np.uint64(shift)).astype(np.uint16), minlength=2**_BITS)
        longer: dict[int, list[int]] = {}
        for beginning, places in beginnings.items():
            ends = np.cumsum(counts[beginning])
            for place in places:
                next_bits = int(np.searchsorted(ends, place, side="right"))
                before = int(ends[next_bits - 1]) if next_bits else 0
                longer.setdefault(beginning << _BITS | next_bits, []).append(place - before)
        beginnings = longer
    keys = np.repeat(np.array(list(beginnings), np.uint64), [len(places) for places in beginnings.values()])
    return _numbers(keys, values.dtype)


def _ordered(block: NDArray[Any]) -> NDArray[np.uint64]:
    """Numbers as whole ones without a sign, in the same order."""
    if block.dtype == np.int32:
        return (block.view(np.uint32) ^ np.uint32(2**31)).astype(np.uint64)
    bits = (block + 0.0).view(np.uint64)  # there is one zero only
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(2**63))


def _numbers(keys: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The way back."""
    if dtype == np.int32:
        return (keys.astype(np.uint32) ^ np.uint32(2**31)).view(np.int32)
    return np.where(keys >> np.uint64(63), keys ^ np.uint64(2**63), ~keys).view(np.float64)


@dataclass(frozen=True, slots=True)
class Spread:
    """How numbers are distributed; NaN of none."""

    marks: Mapping[str, float]
    """Smallest, quantiles and largest, by their names."""
    mean: float

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the numbers lies below the first, a quarter above the second."""
        return self.marks["25 %"], self.marks["75 %"]

    def shown(self) -> dict[str, Json]:
        """For a table."""
        marks = np.round(list(self.marks.values()), 2).tolist()
        return {**dict(zip(self.marks, marks, strict=True)), "mean": round(self.mean, 2)}


def spread(values: Spill) -> Spread:
    """How numbers are distributed, in one reading for all quantiles."""
    names = {"smallest": 0.0, "1 %": 0.01, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "99 %": 0.99, "largest": 1.0}
    marks = quantiles(values, list(names.values()))
    return Spread(dict(zip(names, marks.tolist(), strict=True)), mean_of(values))


def bins(values: Spill) -> tuple[list[str], list[int]]:
    """A histogram of lengths: each bin reaches to twice the end of the one before."""
    counts = np.zeros(64, np.int64)
    for block in values.blocks():
        powers = np.where(block > 0, np.ceil(np.log2(np.maximum(block, 1))), -1).astype(np.int64)
        counts += np.bincount(powers + 1, minlength=64)
    if not counts[1:].any():
        return [], []
    low, high = np.flatnonzero(counts)[[0, -1]].tolist()
    labels = [f"≤ {2 ** (place - 1):,}" if place else "0" for place in range(low, high + 1)]
    return labels, counts[low : high + 1].tolist()
