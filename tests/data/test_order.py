"""Orders of an epoch: what they promise, and that nothing but seed and epoch changes them."""

from __future__ import annotations

import numpy as np

from luthier.data.order import blended, easy_first, shuffled, weighted


def test_orders_are_functions_of_seed_and_epoch():
    weights = np.linspace(1, 4, 50)
    for order in (
        lambda seed, epoch: shuffled(50, seed, epoch),
        lambda seed, epoch: weighted(weights, seed, epoch),
        lambda seed, epoch: easy_first(weights, seed, epoch, 9),
    ):
        assert (order(1, 2) == order(1, 2)).all()
        assert (order(1, 2) != order(1, 3)).any() and (order(1, 2) != order(2, 2)).any()


def test_a_sample_is_drawn_as_often_as_its_weight_says():
    weights = np.array([0.0, 1.0, 2.0, 5.0] * 25)
    for epoch in range(5):
        counts = np.bincount(weighted(weights, 0, epoch), minlength=100)
        assert counts.sum() == 100
        expected = weights / 2.0
        assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
    total = sum(np.bincount(weighted(weights, 1, epoch), minlength=100) for epoch in range(400)) / 400
    assert np.abs(total - weights / 2.0).max() < 0.15


def test_equal_weights_give_every_sample_once():
    assert sorted(weighted(np.full(30, 0.1), 3, 0).tolist()) == list(range(30))


def test_easy_samples_come_first_and_none_is_lost():
    rng = np.random.default_rng(0)
    hardness = rng.permutation(1000).astype(float)
    order = easy_first(hardness, 5, 0, 1)
    assert sorted(order.tolist()) == list(range(1000))
    places = hardness[order]
    # No sample leaves its place by more than a tenth of the set.
    assert np.abs(places - np.arange(1000)).max() <= 100 + 1
    assert np.corrcoef(places, np.arange(1000))[0, 1] > 0.99
    later = hardness[easy_first(hardness, 5, 1, 1)]
    assert abs(np.corrcoef(later, np.arange(1000))[0, 1]) < 0.15


def test_a_blend_holds_each_set_by_its_share_in_any_run_of_it():
    sizes, shares = [100, 20, 40], [1.0, 2.0, 1.0]
    seen = np.zeros(160, dtype=int)
    for epoch in range(7):
        order = blended(sizes, shares, 3, epoch)
        assert (order == blended(sizes, shares, 3, epoch)).all() and len(order) == 160
        owner = np.searchsorted([100, 120], order, side="right")
        for start in range(0, 160, 8):
            counts = np.bincount(owner[start : start + 8], minlength=3)
            assert np.abs(counts - [2, 4, 2]).max() <= 1
        seen += np.bincount(order, minlength=160)
    # No sample of a set is taken twice before all have been taken once, over all epochs.
    assert max(np.ptp(part) for part in np.split(seen, [100, 120])) <= 1
    assert seen[100:120].sum() == 7 * 80


def test_a_blend_by_size_gives_every_sample_once():
    for epoch in range(3):
        assert sorted(blended([5, 17, 3], [5, 17, 3], 0, epoch).tolist()) == list(range(25))
