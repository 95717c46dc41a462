"""Shares and draws: numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.prepare import drawing


def test_shares_add_up_whatever_the_remainders() -> None:
    assert drawing.shared_out(10, np.array([1.0, 1.0, 1.0])).tolist() == [4, 3, 3]
    assert drawing.shared_out(7, np.array([0.5, 0.3, 0.2])).tolist() == [4, 2, 1]
    for total in range(50):
        assert drawing.shared_out(total, np.array([0.2, 0.3, 0.11])).sum() == total


def test_temperature_flattens() -> None:
    counts = np.array([1000, 10, 0])
    assert drawing.tempered(counts, 1.0) == pytest.approx([1000 / 1010, 10 / 1010, 0])
    assert drawing.tempered(counts, 2.0) == pytest.approx([10 / 11, 1 / 11, 0])  # roots: 31.6 to 3.16
    assert drawing.tempered(counts, 1e9) == pytest.approx([0.5, 0.5, 0])


def test_largest_total_is_what_the_scarcest_set_allows() -> None:
    assert drawing.largest_total(np.array([100, 10]), np.array([0.5, 0.5])) == 20
    assert drawing.largest_total(np.array([100, 10]), np.array([1.0, 0.0])) == 100


@pytest.mark.parametrize("weighting", ["balanced", "sqrt", "effective"])
def test_class_weights_have_mean_one_over_rows(weighting: drawing.Weighting) -> None:
    counts = np.array([900, 90, 10])
    weights = drawing.class_weights(counts, weighting, 0.999)
    assert (weights * counts).sum() == pytest.approx(1000)
    assert weights[0] < weights[1] < weights[2]


def test_class_weights_by_hand() -> None:
    counts = np.array([30, 10])
    assert drawing.class_weights(counts, "balanced", 0.9) == pytest.approx([40 / 60, 40 / 20])
    raw = np.array([0.1 / (1 - 0.9**30), 0.1 / (1 - 0.9**10)])
    assert drawing.class_weights(counts, "effective", 0.9) == pytest.approx(raw * 40 / (raw * counts).sum())


def test_a_draw_repeats_rows_evenly() -> None:
    rows = np.array([3, 5, 8])
    drawn = drawing.draw(rows, 8, np.random.default_rng(0))
    assert sorted(np.bincount(drawn, minlength=9)[rows].tolist()) == [2, 3, 3]
    assert len(set(drawing.draw(rows, 2, np.random.default_rng(0)).tolist())) == 2
    assert drawing.draw(rows[:0], 3, np.random.default_rng(0)).tolist() == []


def test_a_draw_within_a_budget_comes_near_it() -> None:
    sizes = np.full(100, 7)
    drawn = drawing.draw_within(np.arange(100), sizes, 1000, np.random.default_rng(0))
    assert abs(len(drawn) * 7 - 1000) <= 3.5
    assert drawing.draw_within(np.arange(2), np.array([0, 0]), 5, np.random.default_rng(0)).tolist() == []


def test_interleaving_spreads_the_small_part() -> None:
    mixed = drawing.interleaved([np.arange(90), np.arange(100, 110)])
    places = np.flatnonzero(mixed >= 100)
    assert np.diff(places).min() >= 9 and np.diff(places).max() <= 11
    assert mixed[places].tolist() == list(range(100, 110))
