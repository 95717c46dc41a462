"""Packing is a pure function that never splits a group and never overfills a pack."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.pack import best_fit_decreasing, epoch_packs, micro_batches

LENGTHS = st.lists(st.integers(1, 64), max_size=120)


@given(LENGTHS, st.integers(16, 64))
def test_every_item_lies_in_one_bin_and_bins_hold(lengths: list[int], capacity: int):
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    for members in bins:
        assert len(members) == 1 or sum(lengths[index] for index in members) <= capacity


@given(LENGTHS)
def test_best_fit_is_within_its_proven_bound(lengths: list[int]):
    # Best-fit decreasing uses at most 11/9 of the optimum plus 4 (Johnson 1974); the sum is a bound on the optimum.
    bins = best_fit_decreasing(lengths, 64)
    halves = sum(length > 32 for length in lengths)
    optimum_at_least = max(-(-sum(lengths) // 64), halves)
    assert len(bins) <= max(11 / 9 * optimum_at_least + 4, optimum_at_least * 1.7 + 1)


def test_best_fit_prefers_the_fullest_bin():
    # 6 and 5 open bins with 4 and 5 left; 4 goes where exactly 4 is left, 5 where exactly 5 is left.
    assert best_fit_decreasing([6, 5, 5, 4], 10) == [[0, 3], [1, 2]]


def test_an_item_beyond_the_capacity_gets_its_own_bin():
    assert best_fit_decreasing([100, 3, 3], 10) == [[0], [1, 2]]


def test_mixed_lengths_pack_tightly():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5, 1, 5000).astype(np.int64) + 1, 2048)
    bins = best_fit_decreasing(lengths, 2048)
    assert lengths.sum() / (len(bins) * 2048) > 0.99


@given(LENGTHS, st.integers(64, 200), st.integers(1, 4), st.booleans())
def test_micro_batches_hold_every_sample_once_for_any_number_of_ranks(
    lengths: list[int], capacity: int, ranks: int, padded: bool
):
    bins = micro_batches(lengths, capacity, ranks, padded=padded)
    assert len(bins) % ranks == 0
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    for members in filter(None, bins):
        sizes = [lengths[index] for index in members]
        assert (len(sizes) * max(sizes) if padded else sum(sizes)) <= capacity


def test_ranks_get_even_shares():
    bins = micro_batches([50, 50, 30, 30, 20, 20], 1000, 2)
    assert [sum([50, 50, 30, 30, 20, 20][i] for i in members) for members in bins] == [100, 100]


def test_epoch_packs_are_a_function_of_the_generator_state():
    lengths = np.arange(1, 200, dtype=np.int64)
    order = np.random.default_rng(1).permutation(len(lengths))
    first = epoch_packs(lengths, order, 256, np.random.default_rng(2))
    again = epoch_packs(lengths, order, 256, np.random.default_rng(2))
    other = epoch_packs(lengths, order, 256, np.random.default_rng(3))
    assert first == again != other
    assert sorted(map(tuple, first)) == sorted(map(tuple, other))
