"""Which rows to keep: the best by a score, the most different, no two that mean the same.  Pure functions of arrays.

Legend: N rows, D numbers that describe a row (its embedding, of length 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import MissingExtra
from luthier.prepare.words import counted

Keep = Literal["highest", "lowest", "middle"]
Numbers = NDArray[np.int64]
Floats = NDArray[np.float32]

_ALL_PAIRS = 20_000
"""Rows whose pairs are all compared; more are put into clusters of about a quarter as many first."""
_BLOCK = 2048


def sketch(texts: Sequence[str], width: int = 256) -> Floats:
    """Embeddings without a model: which words and pairs of neighbouring words a text has, hashed; [N, D].

    Source: Weinberger et al., "Feature hashing for large scale multitask learning" (2009).  The inner product of two
    is about the cosine of their sets of features.  A text without words gives zeros.
    """
    made = np.zeros((len(texts), width), np.float32)
    for row, text in enumerate(texts):
        words = counted(text)
        hashes = np.array([_hash(feature) for feature in {*words, *map(" ".join, pairwise(words))}], np.int64)
        np.add.at(made[row], (hashes >> 1) % width, 1.0 - 2.0 * (hashes & 1))
    return unit(made)


@lru_cache(maxsize=500_000)
def _hash(feature: str) -> int:
    return int.from_bytes(blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "little")


def unit(vectors_ND: Floats) -> Floats:
    """Each row scaled to length 1; zeros stay."""
    length = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return (vectors_ND / np.where(length > 0, length, 1)).astype(np.float32)


def k_centre(vectors_ND: Floats, k: int) -> Numbers:
    """k rows such that no row is far from all of them, by greedy choice; ascending, int64 [k].

    The first is the one nearest to the mean; each next one is the farthest from all before it.  Source: Gonzalez,
    "Clustering to minimize the maximum intercluster distance" (1985); Sener and Savarese (2018) for training sets.
    """
    rows = len(vectors_ND)
    if k >= rows:
        return np.arange(rows)
    chosen = np.empty(k, np.int64)
    near = np.full(rows, -np.inf, np.float32)  # largest cosine with a chosen row
    at = int(np.argmax(vectors_ND @ vectors_ND.mean(axis=0)))
    for number in range(k):
        chosen[number] = at
        np.maximum(near, vectors_ND @ vectors_ND[at], out=near)
        near[at] = np.inf
        at = int(np.argmin(near))
    return np.sort(chosen)


def semantic_first(vectors_ND: Floats, threshold: float, seed: int) -> Numbers:
    """For every row the first kept row it repeats, or itself; int64 [N].

    A row is left out when a kept one before it has a cosine of `threshold` or more with it.  Large sets are clustered
    by k-means first and compared within clusters, as in Abbas et al., "SemDeDup" (2023); pairs across borders are
    missed then.

    Raises:
        MissingExtra: scikit-learn is needed for large sets.
    """
    first = np.arange(len(vectors_ND))
    for rows in _clusters(vectors_ND, seed):
        kept = rows[:0]
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            if len(kept):
                close = vectors_ND[block] @ vectors_ND[kept].T
                old = close.max(axis=1) >= threshold
                first[block[old]] = kept[close[old].argmax(axis=1)]
                block = block[~old]
            same = vectors_ND[block] @ vectors_ND[block].T >= threshold
            alive = np.ones(len(block), bool)
            for place in range(len(block)):
                if alive[place]:
                    later = np.flatnonzero(same[place] & alive)
                    later = later[later > place]
                    alive[later] = False
                    first[block[later]] = block[place]
            kept = np.concatenate([kept, block[alive]])
    return first


def _clusters(vectors_ND: Floats, seed: int) -> list[Numbers]:
    if len(vectors_ND) <= _ALL_PAIRS:
        return [np.arange(len(vectors_ND))]
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise MissingExtra("scikit-learn", "data", what_for="semantic deduplication of many rows") from error
    clusters = len(vectors_ND) * 4 // _ALL_PAIRS + 1
    means = MiniBatchKMeans(clusters, random_state=seed, n_init="auto", batch_size=4096)
    found = means.fit_predict(vectors_ND)
    return [np.flatnonzero(found == cluster) for cluster in range(clusters)]


def best(scores: NDArray[np.float64], budget: int, keep: Keep, trim: float = 0.0) -> Numbers:
    """The rows with the wanted scores; ties go to the earlier row; ascending, int64.

    Args:
        scores: one for each row; NaN is never chosen.
        trim: this share at the wanted end is passed over first: in `highest`, the very highest.
    """
    known = np.flatnonzero(~np.isnan(scores))
    ascending = known[np.argsort(scores[known], kind="stable")]
    passed = int(trim * len(known))
    if keep == "lowest":
        return np.sort(ascending[passed : passed + budget])
    if keep == "highest":
        descending = known[np.argsort(-scores[known], kind="stable")]
        return np.sort(descending[passed : passed + budget])
    start = max(0, (len(known) - budget) // 2)
    return np.sort(ascending[start : start + budget])
