"""How well scores order things: correlation with given degrees, and rankings of documents for queries.

Legend: N items, K ranked documents.

Sources: trec_eval (its `ndcg_cut`, `recall`, `P`, `recip_rank`, `map`), which BEIR and pytrec_eval use: gains enter
nDCG as they are, the discount is log2(rank + 1), and a document of equal score comes first whose name is greater.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Run = Mapping[str, Mapping[str, float]]
"""Score of each document that was found for each query."""
Judgements = Mapping[str, Mapping[str, float]]
"""Gain of each document that is known to answer each query; 0 and below: it does not."""


def pearson(one_N: Floats, other_N: Floats) -> float:
    """Linear correlation, -1 to 1; NaN for fewer than two items or where one side never changes."""
    one, other = one_N - one_N.mean() if len(one_N) else one_N, other_N - other_N.mean() if len(other_N) else other_N
    spread = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / spread if spread > 0 else math.nan


def spearman(one_N: Floats, other_N: Floats) -> float:
    """Correlation of the ranks, equal values sharing the mean of theirs; NaN as for `pearson`."""
    return pearson(ranks(one_N), ranks(other_N))


def ranks(values_N: Floats) -> Floats:
    """Rank of each value from 1, the smallest; equal values share the mean of their ranks."""
    _, which, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


@dataclass(frozen=True)
class Ranked:
    """What was found for one query."""

    gains_K: Floats
    """Gain of each document, best score first; 0 for one that does not answer."""
    known: Floats
    """Gain of every document that answers the query, found or not, greatest first."""

    @classmethod
    def of(cls, scores: Mapping[str, float], judged: Mapping[str, float]) -> Ranked:
        """Rank documents by score; of equal scores the greater name comes first."""
        order = sorted(scores, key=lambda name: (scores[name], name), reverse=True)
        gains = [max(judged.get(name, 0.0), 0.0) for name in order]
        known = sorted((gain for gain in judged.values() if gain > 0), reverse=True)
        return cls(np.array(gains, np.float64), np.array(known, np.float64))


def dcg(gains_K: Floats) -> float:
    """sum_k gain_k / log2(k + 1), k from 1."""
    return float((gains_K / np.log2(np.arange(2, len(gains_K) + 2))).sum())


def ndcg(ranked: Ranked, k: int) -> float:
    """Discounted gain of the first k over the best that is possible; 0 where no document answers."""
    best = dcg(ranked.known[:k])
    return dcg(ranked.gains_K[:k]) / best if best > 0 else 0.0


def recall(ranked: Ranked, k: int) -> float:
    """Share of the documents that answer which are among the first k."""
    return float((ranked.gains_K[:k] > 0).sum()) / len(ranked.known) if len(ranked.known) else 0.0


def precision(ranked: Ranked, k: int) -> float:
    """Share of the first k places that hold a document that answers."""
    return float((ranked.gains_K[:k] > 0).sum()) / k


def reciprocal_rank(ranked: Ranked, k: int | None = None) -> float:
    """1 over the rank of the first document that answers, among the first k; 0 without any."""
    found = np.flatnonzero(ranked.gains_K[:k] > 0)
    return 1.0 / (int(found[0]) + 1) if len(found) else 0.0


def average_precision(ranked: Ranked) -> float:
    """Precision at the place of each document that answers, over all that answer."""
    places = np.flatnonzero(ranked.gains_K > 0) + 1
    return float((np.arange(1, len(places) + 1) / places).sum()) / len(ranked.known) if len(ranked.known) else 0.0


def retrieval(run: Run, judgements: Judgements, cuts: Sequence[int] = (1, 10, 100)) -> dict[str, float]:
    """Means over all queries that some document answers: ndcg@k, recall@k, mrr@k and map.

    A query that the run leaves out counts as one for which nothing was found.
    """
    asked = [name for name, judged in judgements.items() if any(gain > 0 for gain in judged.values())]
    found = [Ranked.of(run.get(name, {}), judgements[name]) for name in asked]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    means = {f"ndcg@{k}": mean([ndcg(ranked, k) for ranked in found]) for k in cuts}
    means |= {f"recall@{k}": mean([recall(ranked, k) for ranked in found]) for k in cuts}
    means |= {f"mrr@{k}": mean([reciprocal_rank(ranked, k) for ranked in found]) for k in cuts}
    return {**means, "map": mean([average_precision(ranked) for ranked in found])}
