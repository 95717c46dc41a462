"""In which order an epoch gives its samples: a pure function of (seed, epoch) and of what is known of the samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

NOISE = 0.1
"""By what share of the set a sample may leave its place among harder or easier ones."""


def shuffled(size: int, seed: int, epoch: int) -> Indices:
    """Every sample once, in random order.  [size]"""
    return np.random.default_rng([seed, epoch]).permutation(size)


def weighted(weights_N: NDArray[np.float64], seed: int, epoch: int) -> Indices:
    """As many samples as there are, each drawn with a probability proportional to its weight.  [N]

    Drawn along one random offset (systematic resampling): a sample stands in the epoch as often as its weight says,
    rounded up or down, and never by luck alone.
    """
    rng = np.random.default_rng([seed, epoch])
    size = len(weights_N)
    ends = np.cumsum(weights_N / weights_N.sum())
    places = (rng.random() + np.arange(size)) / size
    return rng.permutation(np.minimum(np.searchsorted(ends, places, side="right"), size - 1))


def easy_first(hardness_N: NDArray[np.float64], seed: int, epoch: int, epochs: int) -> Indices:
    """Every sample once: from easy to hard in the first `epochs`, in random order afterwards.  [N]

    Places are loose: neighbours within a tenth of the set mix, so that a step does not consist of equals.
    """
    if epoch >= epochs:
        return shuffled(len(hardness_N), seed, epoch)
    rng = np.random.default_rng([seed, epoch])
    # Equal ones come in random order, then places are shaken.
    mixed = rng.permutation(len(hardness_N))
    ranks = np.empty(len(hardness_N))
    ranks[mixed[np.argsort(hardness_N[mixed], kind="stable")]] = np.arange(len(hardness_N))
    return np.argsort(ranks + rng.random(len(ranks)) * NOISE * len(ranks), kind="stable")


def blended(sizes: Sequence[int], shares: Sequence[float], seed: int, epoch: int) -> Indices:
    """Samples of several sets that lie end to end, so mixed that any run of them holds each set by its share.  [N]

    An epoch has as many samples as there are.  Each set gives its share of them from passes in random order that go on
    from epoch to epoch, so that none of its samples is taken a second time before all have been taken.

    Args:
        shares: relative to each other.
    """
    total, whole = sum(sizes), sum(shares)
    counts = [max(1, round(total * share / whole)) for share in shares]
    samples: list[Indices] = []
    places: list[NDArray[np.float64]] = []
    start = 0
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        first = epoch * count
        passes = range(first // size, -(-(first + count) // size))
        drawn = np.concatenate([np.random.default_rng([seed, number, at]).permutation(size) for at in passes])
        begin = first - passes.start * size
        samples.append(start + drawn[begin : begin + count])
        places.append((np.arange(count) + 0.5) / count)
        start += size
    # Evenly spread; where two sets meet in one place, the one that comes first goes first.
    return np.concatenate(samples)[np.argsort(np.concatenate(places), kind="stable")]
