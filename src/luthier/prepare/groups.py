"""Which rows belong together: equal keys, and pairs joined into groups.  Pure functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.spill import Spill

Rows = NDArray[np.signedinteger[Any]]
"""Numbers of rows, no wider than they need be."""
_MOST_AT_ONCE = 2_000_000
"""Keys that are sorted at a time; more are sorted share by share, so that memory stays bounded."""
AT_ONCE = 1_000_000
"""Rows that are looked at together where numpy would take eight bytes for each of them."""


def width(rows: int) -> type[np.signedinteger[Any]]:
    """What the numbers of so many rows fit into: four bytes, until there are more than two thousand million."""
    return np.int32 if rows <= 2**31 else np.int64


def positions(which: NDArray[np.bool_]) -> Rows:
    """The rows for which something is true; a few at a time, since `np.flatnonzero` takes eight bytes for each."""
    found = np.empty(int(which.sum()), width(len(which)))
    filled = 0
    for at in range(0, len(which), AT_ONCE):
        some = np.flatnonzero(which[at : at + AT_ONCE])
        found[filled : filled + len(some)] = some + at
        filled += len(some)
    return found


def frequencies(values: NDArray[np.signedinteger[Any]], length: int) -> NDArray[np.int64]:
    """How often each number from 0 to `length` - 1 is there, int64 [length]; numbers below 0 do not count.

    A few at a time: `np.bincount` would take eight bytes for each of them.
    """
    found = np.zeros(length, np.int64)
    for at in range(0, len(values), AT_ONCE):
        some = values[at : at + AT_ONCE]
        found += np.bincount(some[some >= 0], minlength=length)
    return found


def first_of_equals(keys: Spill) -> Rows:
    """For every row the first row with the same key; [N].

    Args:
        keys: uint64 [N, 2], both halves of a 128-bit hash.
    """
    first = np.arange(keys.rows, dtype=width(keys.rows))
    shares = -(-keys.rows // _MOST_AT_ONCE)
    for share in range(shares):
        numbers, wanted = _share(keys, share, shares)
        order = np.lexsort((numbers, wanted[:, 1], wanted[:, 0]))
        ordered = wanted[order]
        starts = np.ones(len(order), dtype=bool)
        starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        leaders = numbers[order][starts]
        first[numbers[order]] = leaders[np.cumsum(starts) - 1]
    return first


def distinct(keys: Spill) -> int:
    """How many different keys there are.

    Args:
        keys: uint64 [N, 2], both halves of a 128-bit hash.
    """
    found, shares = 0, -(-keys.rows // _MOST_AT_ONCE)
    for share in range(shares):
        _, some = _share(keys, share, shares)
        some = some[np.lexsort((some[:, 1], some[:, 0]))]
        found += 1 + int((some[1:] != some[:-1]).any(axis=1).sum()) if len(some) else 0
    return found


def _share(keys: Spill, share: int, shares: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Numbers and keys of the rows whose key falls into one share."""
    numbers: list[NDArray[np.int64]] = []
    found: list[NDArray[np.uint64]] = []
    start = 0
    for block in keys.blocks():
        mine = np.flatnonzero(block[:, 0] % np.uint64(shares) == share) if shares > 1 else np.arange(len(block))
        numbers.append(mine.astype(np.int64) + start)
        found.append(block[mine])
        start += len(block)
    return np.concatenate(numbers), np.concatenate(found)


def stand_alone(first: Rows, start: int = 0) -> NDArray[np.bool_]:
    """Which rows are the first of their group, bool [rows]; a few at a time, so that their numbers take no memory.

    Args:
        start: number of the first of these rows.
    """
    alone = np.empty(len(first), bool)
    for at in range(0, len(first), AT_ONCE):
        some = first[at : at + AT_ONCE]
        alone[at : at + AT_ONCE] = some == np.arange(start + at, start + at + len(some))
    return alone


def leading(first: Rows, start: int = 0) -> Rows:
    """The first row of its group for each row that is not the first itself; a few at a time, for the same reason.

    Args:
        start: number of the first of these rows.
    """
    found = [np.empty(0, first.dtype)]
    for at in range(0, len(first), AT_ONCE):
        some = first[at : at + AT_ONCE]
        found.append(some[some != np.arange(start + at, start + at + len(some))])
    return np.concatenate(found)


def shared(groups: Rows) -> NDArray[np.bool_]:
    """Which rows are in a group with others, bool [N].

    Args:
        groups: the number of every row's group, 0 to N - 1.
    """
    seen, again = np.zeros(len(groups), bool), np.zeros(len(groups), bool)
    for at in range(0, len(groups), AT_ONCE):
        some, counts = np.unique(groups[at : at + AT_ONCE], return_counts=True)
        again[some[seen[some] | (counts > 1)]] = True
        seen[some] = True
    return again[groups]


def join(first: Rows, pairs: Rows) -> Rows:
    """Join groups by pairs of rows: for every row the first row of its group; [N].

    Every row takes the smallest number it is connected with, and pointers are shortened by half in each turn, so the
    number of turns grows with the logarithm of the longest chain.

    Args:
        first: for every row the first row of its group so far, [N]; `arange(N)` when all are alone.
        pairs: rows that belong together, [P, 2].
    """
    first = first.copy()
    one, other = pairs[:, 0], pairs[:, 1]
    while True:
        a, b = first[one], first[other]
        apart = a != b
        if not apart.any():
            return first
        one, other, a, b = one[apart], other[apart], a[apart], b[apart]
        np.minimum.at(first, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = first[first]
            if np.array_equal(shorter, first):
                break
            first = shorter
