"""Which rows go to which part of a split.  Pure functions of groups, labels, times and a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.groups import AT_ONCE, Rows, frequencies, positions, shared

Numbers = NDArray[np.int64]


def split_groups(groups: Rows, strata: Rows, ratios: Sequence[float], seed: int) -> NDArray[np.int8]:
    """The part of every row, int8 [N], so that no group is torn and every stratum is divided by the ratios.

    Groups of several rows are dealt out in random order, the large ones first, each to the part that lacks most of
    what the group has.  Then the rows that stand alone fill what is lacking; without groups this is the usual
    stratified split, exact to one row a stratum and in all.

    Memory: beside the arguments some ten bytes a row, twenty where all of them are in groups.

    Args:
        groups: rows with equal numbers stay together; 0 to N - 1, int [N].
        strata: class of each row, int [N].
        ratios: shares of the parts, any positive scale.
    """
    rng = np.random.default_rng([seed, len(groups)])
    kind = _dense(strata)
    kinds = int(kind.max(initial=-1)) + 1
    lacking = _wanted(frequencies(kind, kinds), ratios)
    parts = np.zeros(len(groups), np.int8)
    together = shared(groups)
    _deal(parts, groups, kind, positions(together), lacking, rng)
    alone = positions(~together)
    del together
    rng.shuffle(alone)
    counts = frequencies(kind[alone], kinds)
    if kinds > 1:
        alone = _by_kind(alone, kind, counts)
    start = 0
    for number, count in enumerate(counts.tolist()):
        need = np.maximum(lacking[:, number], 0)
        need = need if need.sum() > 0 else np.asarray(ratios, np.float64)
        given = _rounded(need / need.sum() * count, count)
        parts[alone[start : start + count]] = np.repeat(np.arange(len(ratios), dtype=np.int8), given)
        start += count
    return parts


def _dense(strata: Rows) -> Rows:
    """The classes by their rank, without gaps."""
    low, high = int(strata.min(initial=0)), int(strata.max(initial=0))
    if low == high:
        return np.broadcast_to(np.int8(0), len(strata))
    there = frequencies(strata - low, high - low + 1) > 0
    ranks = np.cumsum(there, dtype=np.int64) - 1
    return ranks.astype(np.int16 if ranks[-1] < 2**15 else np.int32)[strata - low]


def _by_kind(rows: Rows, kind: Rows, counts: Numbers) -> Rows:
    """Rows by their class, otherwise in the order they are in; sorted a few at a time, since sorting all at once takes
    eight bytes for each.

    Args:
        counts: how many of the rows are of each class.
    """
    found = np.empty_like(rows)
    ends = np.cumsum(counts) - counts  # of what has found its place of each class
    for at in range(0, len(rows), AT_ONCE):
        some = rows[at : at + AT_ONCE]
        of = kind[some]
        more = frequencies(of, len(counts))
        before = np.cumsum(more) - more
        found[np.arange(len(some)) + np.repeat(ends - before, more)] = some[np.argsort(of, kind="stable")]
        ends += more
    return found


def _deal(
    parts: NDArray[np.int8],
    of: Rows,
    kind: Rows,
    rows: Rows,
    lacking: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Deal out the groups of these rows, writing their parts and taking them from what is `lacking` [parts, strata]."""
    order = rows[np.argsort(of[rows], kind="stable")]
    starts = positions(np.diff(of[order], prepend=-1) != 0)
    sizes = np.diff(starts, append=len(order))
    turns = rng.permutation(len(starts))
    turns = turns[np.argsort(-sizes[turns], kind="stable")]
    scale = 1.0 / np.maximum(lacking.sum(axis=0), 1.0)
    for start, size in zip(starts[turns], sizes[turns], strict=True):
        piece = order[start : start + size]
        strata, counts = np.unique(kind[piece], return_counts=True)
        part = int(np.argmax((lacking[:, strata] * (counts * scale[strata])).sum(axis=1)))
        parts[piece] = part
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
    del latest
    ends = np.cumsum(_wanted(np.array([len(times)]), ratios)[:, 0]).astype(np.int64)[:-1]
    ordered = np.partition(moment, ends[ends < len(moment)])
    cuts = np.array([ordered[end] if end < len(ordered) else np.inf for end in ends.tolist()])
    del ordered
    parts = np.empty(len(moment), np.int8)
    for at in range(0, len(moment), AT_ONCE):
        parts[at : at + AT_ONCE] = np.searchsorted(cuts, moment[at : at + AT_ONCE], side="right")
    return parts
