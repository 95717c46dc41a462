"""Rankings: worked examples, and scipy, scikit-learn and trec_eval where they are installed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from luthier.score.ranking import Ranked, average_precision, ndcg, pearson, ranks, recall, retrieval, spearman


def test_equal_values_share_the_mean_of_their_ranks():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_correlations_equal_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 6, 40).astype(float), rng.normal(size=40).round(1)
        assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
        assert pearson(one, other) == pytest.approx(stats.pearsonr(one, other).statistic, abs=1e-12)


def test_a_correlation_with_what_never_changes_is_no_number():
    assert math.isnan(spearman(np.ones(4), np.arange(4.0)))
    assert math.isnan(pearson(np.zeros(0), np.zeros(0)))
    assert math.isnan(spearman(np.ones(1), np.ones(1)))


def test_ndcg_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for k in (1, 3, 10):
        scores, gains = rng.normal(size=12), rng.integers(0, 4, 12)
        names = [f"{number:02d}" for number in range(12)]
        ranked = Ranked.of(dict(zip(names, scores, strict=True)), dict(zip(names, gains.tolist(), strict=True)))
        assert ndcg(ranked, k) == pytest.approx(metrics.ndcg_score([gains], [scores], k=k), abs=1e-12)
        found = metrics.average_precision_score(gains > 0, scores)
        assert average_precision(ranked) == pytest.approx(found, abs=1e-12)


def test_documents_that_were_not_found_count():
    judged = {"a": 2.0, "b": 1.0, "c": 1.0, "d": 0.0}
    ranked = Ranked.of({"d": 0.9, "b": 0.8, "a": 0.1}, judged)
    assert ranked.gains_K.tolist() == [0.0, 1.0, 2.0]
    assert recall(ranked, 2) == pytest.approx(1 / 3)
    ideal = 2 + 1 / math.log2(3) + 1 / 2
    assert ndcg(ranked, 10) == pytest.approx((1 / math.log2(3) + 2 / 2) / ideal)


def test_unanswerable_queries_are_left_out_and_missing_ones_count_as_nothing_found():
    judged = {"one": {"a": 1.0}, "two": {"a": 1.0}, "nothing": {"a": 0.0}}
    means = retrieval({"one": {"b": 2.0, "a": 1.0}, "nothing": {"a": 1.0}}, judged, (1, 2))
    assert means["mrr@2"] == pytest.approx((1 / 2 + 0) / 2)
    assert (means["recall@1"], means["recall@2"]) == (0.0, 0.5)


def test_everything_equals_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(2)
    judged: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for query in range(30):
        docs = [f"d{number}" for number in rng.permutation(60)]
        judged[f"q{query}"] = {name: int(rng.integers(0, 3)) for name in docs[:12]} | {docs[0]: 1}
        # Few different scores, so that many are equal.
        run[f"q{query}"] = {name: float(rng.integers(0, 8)) / 4 for name in docs[6:50]}
    names = {"ndcg_cut.5,20", "recall.5,20", "map", "recip_rank", "P.5"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, names).evaluate(run)
    ours = retrieval(run, {name: dict(found) for name, found in judged.items()}, (5, 20, 1000))
    for mine, other in (
        ("ndcg@5", "ndcg_cut_5"),
        ("ndcg@20", "ndcg_cut_20"),
        ("recall@5", "recall_5"),
        ("recall@20", "recall_20"),
        ("mrr@1000", "recip_rank"),
        ("map", "map"),
    ):
        assert ours[mine] == pytest.approx(np.mean([row[other] for row in theirs.values()]), abs=1e-6), mine
