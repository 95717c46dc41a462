"""Orders of an epoch: what they promise, and that nothing but seed and epoch changes them."""

from __future__ import annotations

import numpy as np

from luthier.data.order import easy_first, shuffled, weighted


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
