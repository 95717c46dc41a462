"""Which rows go to which part of a split.  Pure functions of groups, labels, times and a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.groups import Rows, positions, shared

Numbers = NDArray[np.int64]


def split_groups(groups: Rows, strata: Rows, ratios: Sequence[float], seed: int) -> NDArray[np.int8]:
    """The part of every row, int8 [N], so that no group is torn and every stratum is divided by the ratios.

    Groups of several rows are dealt out in random order, the large ones first, each to the part that lacks most of
    what the group has.  Then the rows that stand alone fill what is lacking; without groups this is the usual
    stratified split, exact to one row a stratum and in all.

    Memory: beside the arguments some twenty bytes a row, which is why small numbers are kept small.

    Args:
        groups: rows with equal numbers stay together; 0 to N - 1, int [N].
        strata: class of each row, int [N].
        ratios: shares of the parts, any positive scale.
    """
    rng = np.random.default_rng([seed, len(groups)])
    kind = _dense(strata)
    kinds = int(kind.max(initial=-1)) + 1
    lacking = _wanted(np.bincount(kind, minlength=kinds), ratios)
    parts = np.zeros(len(groups), np.int8)
    together = shared(groups)
    _deal(parts, groups, kind, np.flatnonzero(together), lacking, rng)
    alone = positions(~together)
    rng.shuffle(alone)
    if kinds > 1:
        alone = alone[np.argsort(kind[alone], kind="stable")]
    start = 0
    for number, count in enumerate(np.bincount(kind[alone], minlength=kinds).tolist()):
        need = np.maximum(lacking[:, number], 0)
        need = need if need.sum() > 0 else np.asarray(ratios, np.float64)
        given = _rounded(need / need.sum() * count, count)
        parts[alone[start : start + count]] = np.repeat(np.arange(len(ratios)), given).astype(np.int8)
        start += count
    return parts


def _dense(strata: Rows) -> NDArray[np.int32]:
    """The classes by their rank, without gaps."""
    low = int(strata.min(initial=0))
    there = np.bincount(strata - low) > 0
    return (np.cumsum(there, dtype=np.int32) - 1)[strata - low]


def _deal(
    parts: NDArray[np.int8],
    of: Rows,
    kind: Rows,
    rows: Numbers,
    lacking: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Deal out the groups of these rows, writing their parts and taking them from what is `lacking` [parts, strata]."""
    order = rows[np.argsort(of[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(of[order], prepend=-1))
    pieces = np.split(order, starts[1:]) if len(order) else []
    scale = 1.0 / np.maximum(lacking.sum(axis=0), 1.0)
    for at in sorted(rng.permutation(len(pieces)).tolist(), key=lambda at: -len(pieces[at])):
        strata, counts = np.unique(kind[pieces[at]], return_counts=True)
        part = int(np.argmax((lacking[:, strata] * (counts * scale[strata])).sum(axis=1)))
        parts[pieces[at]] = part
        lacking[part, strata] -= counts


def _wanted(counts: Numbers, ratios: Sequence[float]) -> NDArray[np.float64]:
    """Rows that each part should get of each stratum, whole numbers, [parts, strata]."""
    shares = np.asarray(ratios, np.float64) / sum(ratios)
    wanted = np.zeros((len(shares), len(counts)))
    carried = np.zeros(len(shares))
    for number, count in enumerate(counts.tolist()):
        exact = shares * count + carried
        wanted[:, number] = _rounded(exact, count)
        carried = exact - wanted[:, number]  # what rounding took from a part is given to it in the next stratum
    return wanted


def _rounded(exact: NDArray[np.float64], total: int) -> Numbers:
    """Whole numbers near `exact` that add up to `total` (largest remainders)."""
    given = np.maximum(np.floor(exact), 0).astype(np.int64)
    while given.sum() > total:
        given[int(np.argmax(given - exact))] -= 1
    order = np.lexsort((np.arange(len(exact)), -(exact - given)))
    given[order[: total - int(given.sum())]] += 1
    return given


def split_by_time(times: NDArray[np.float64], groups: Rows, ratios: Sequence[float]) -> NDArray[np.int8]:
    """The part of every row, int8 [N], the earliest in the first part; rows of one group go with its latest row.

    Args:
        times: float64 [N]; equal times stay on one side.
    """
    latest = np.full(int(groups.max()) + 1, -np.inf)
    np.maximum.at(latest, groups, times)
    moment = latest[groups]
    order = np.argsort(moment, kind="stable")
    ends = np.cumsum(_wanted(np.array([len(times)]), ratios)[:, 0]).astype(np.int64)[:-1]
    cuts = [moment[order[end]] if end < len(order) else np.inf for end in ends.tolist()]
    return np.searchsorted(np.asarray(cuts), moment, side="right").astype(np.int8)
