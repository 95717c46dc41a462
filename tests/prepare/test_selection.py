"""Choosing rows by numbers and by difference."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.prepare import selection


def test_sketches_are_near_when_words_are_shared() -> None:
    texts = ["the cat sat on the mat", "on the mat sat the cat", "猫坐在垫子上", "stock prices fell sharply today", ""]
    made = selection.sketch(texts)
    cosines = made @ made.T
    assert cosines[0, 1] > 0.5 > abs(cosines[0, 2]) and abs(cosines[0, 3]) < 0.4
    assert np.linalg.norm(made, axis=1) == pytest.approx([1, 1, 1, 1, 0])


def test_k_centre_takes_one_of_each_cluster() -> None:
    draw = np.random.default_rng(0)
    centres = np.eye(8)[:5]
    points = selection.unit(np.repeat(centres, [100, 50, 20, 5, 2], axis=0) + 0.05 * draw.normal(size=(177, 8)))
    chosen = selection.k_centre(points, 5)
    assert np.searchsorted([100, 150, 170, 175], chosen, side="right").tolist() == [0, 1, 2, 3, 4]
    assert selection.k_centre(points, 500).tolist() == list(range(177))


def test_k_centre_is_within_twice_the_best_radius() -> None:
    points = np.random.default_rng(1).normal(size=(14, 3)).astype(np.float32)
    points = selection.unit(points)

    def radius(rows: np.ndarray) -> float:
        return float(np.linalg.norm(points[:, None] - points[rows][None], axis=2).min(axis=1).max())

    from itertools import combinations

    best = min(radius(np.array(rows)) for rows in combinations(range(14), 3))
    assert radius(selection.k_centre(points, 3)) <= 2 * best + 1e-6  # Gonzalez' bound


def test_semantic_duplicates_equal_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(2)
    points = selection.unit(np.repeat(draw.normal(size=(40, 6)), 3, axis=0) + 0.05 * draw.normal(size=(120, 6)))
    points = points[draw.permutation(120)]
    expected, kept = np.arange(120), list[int]()
    for row in range(120):
        close = [other for other in kept if points[row] @ points[other] >= 0.98]
        if close:
            expected[row] = close[0]
        else:
            kept.append(row)
    monkeypatch.setattr(selection, "_BLOCK", 16)
    found = selection.semantic_first(points, 0.98, 0)
    same = np.arange(120)
    assert ((found == same) == (expected == same)).all()
    assert all(points[row] @ points[found[row]] >= 0.98 for row in np.flatnonzero(found != same))


def test_large_sets_are_compared_within_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    draw = np.random.default_rng(3)
    points = selection.unit(np.repeat(draw.normal(size=(100, 16)), 2, axis=0) + 1e-4 * draw.normal(size=(200, 16)))
    monkeypatch.setattr(selection, "_ALL_PAIRS", 50)
    found = selection.semantic_first(points, 0.99, 0)
    assert found[::2].tolist() == list(range(0, 200, 2)) == found[1::2].tolist()


def test_best_by_score() -> None:
    scores = np.array([3.0, np.nan, 1.0, 2.0, 3.0, 9.0])
    assert selection.best(scores, 2, "highest").tolist() == [0, 5]
    assert selection.best(scores, 2, "highest", trim=0.2).tolist() == [0, 4]
    assert selection.best(scores, 2, "lowest").tolist() == [2, 3]
    assert selection.best(scores, 1, "middle").tolist() == [0]
    assert selection.best(scores, 99, "highest").tolist() == [0, 2, 3, 4, 5]
