"""Which rows of which sets are used, as pure functions of sizes and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def take_indices(size: int, take: int | None, seed: int) -> Indices:
    """The rows that `#N` draws from a set of `size` rows; int64 [take].

    Fewer than there are: drawn without replacement, in random order.  More: every row take // size times, and the
    rest drawn without replacement.  None: all rows in order.
    """
    if take is None or size == 0:
        return np.arange(size, dtype=np.int64)
    repeats, rest = divmod(take, size)
    drawn = np.random.default_rng([seed, size]).permutation(size)[:rest]
    return np.concatenate([np.tile(np.arange(size), repeats), drawn]).astype(np.int64)


def mix_indices(
    sizes: Sequence[int],
    ratios: Sequence[float],
    stop: Literal["first_exhausted", "all_exhausted"],
    seed: int,
) -> Indices:
    """Interleave sets: int64 [N, 2] of (set, row).

    Each draw picks a set with probability proportional to its ratio and takes the set's next row.
    `first_exhausted` ends when a set would have to give a row it does not have; `all_exhausted` begins sets anew
    until the last row of every set has been given.
    """
    if not sizes or min(sizes) == 0:
        return np.empty((0, 2), dtype=np.int64)
    rng = np.random.default_rng([seed, *sizes])
    shares = np.asarray(ratios, dtype=np.float64)
    shares = shares / shares.sum()
    pieces: list[NDArray[np.int64]] = []
    drawn = np.zeros(len(sizes), dtype=np.int64)
    goal = np.asarray(sizes, dtype=np.int64)
    while True:
        picks = rng.choice(len(sizes), size=4096, p=shares).astype(np.int64)
        counts = drawn + np.cumsum(picks[:, None] == np.arange(len(sizes)), axis=0)
        done = (counts > goal).any(axis=1) if stop == "first_exhausted" else (counts >= goal).all(axis=1)
        end = int(np.argmax(done)) + (stop == "all_exhausted") if done.any() else len(picks)
        rows = counts[np.arange(end), picks[:end]] - 1
        pieces.append(np.stack([picks[:end], rows % goal[picks[:end]]], axis=1))
        if done.any():
            return np.concatenate(pieces)
        drawn = counts[-1]


def replay_places(rows: int, ratio: float) -> Indices:
    """Where among `rows` training rows replayed ones are put in, evenly, so that they are a share `ratio` of all."""
    return np.linspace(0, rows, round(rows * ratio / (1 - ratio)), endpoint=False).astype(np.int64)


def split_indices(n: int, ratio: float, seed: int) -> tuple[Indices, Indices]:
    """Hold out a share of n rows: (train, validation), each in the rows' order, drawn at random.

    A ratio above 0 holds out at least one row, and leaves at least one.
    """
    held = min(max(round(n * ratio), 1), n - 1) if ratio > 0 and n > 1 else 0
    order = np.random.default_rng([seed, n]).permutation(n)
    return np.sort(order[held:]).astype(np.int64), np.sort(order[:held]).astype(np.int64)
