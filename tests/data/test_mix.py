"""Index arithmetic of `#N`, ratios and held-out rows."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.mix import mix_indices, split_indices, take_indices


@given(size=st.integers(1, 50), take=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_take_is_exact_and_as_even_as_can_be(size: int, take: int, seed: int) -> None:
    found = take_indices(size, take, seed)
    assert len(found) == take and found.dtype == np.int64
    counts = np.bincount(found, minlength=size)
    assert len(counts) == size and set(counts) <= {take // size, take // size + 1}
    assert (found == take_indices(size, take, seed)).all()


def test_take_depends_on_the_seed_and_none_takes_all() -> None:
    assert list(take_indices(5, None, 0)) == [0, 1, 2, 3, 4]
    assert list(take_indices(1000, 10, 0)) != list(take_indices(1000, 10, 1))
    assert len(take_indices(0, 10, 0)) == 0


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    stop=st.sampled_from(["first_exhausted", "all_exhausted"]),
    seed=st.integers(0, 1000),
)
def test_interleaving_gives_rows_in_order_and_stops_where_it_says(
    sizes: list[int], stop: Literal["first_exhausted", "all_exhausted"], seed: int
) -> None:
    found = mix_indices(sizes, [1.0] * len(sizes), stop, seed)
    drawn = [found[found[:, 0] == index, 1] for index in range(len(sizes))]
    for rows, size in zip(drawn, sizes, strict=True):
        assert (rows == np.arange(len(rows)) % size).all()
    if stop == "first_exhausted":
        assert all(len(rows) <= size for rows, size in zip(drawn, sizes, strict=True))
        assert any(len(rows) == size for rows, size in zip(drawn, sizes, strict=True))
    else:
        assert all(len(rows) >= size for rows, size in zip(drawn, sizes, strict=True))
        last = found[-1, 0]
        assert len(drawn[last]) == sizes[last]  # the draw that ended it was needed


def test_ratios_are_kept() -> None:
    found = mix_indices([100_000, 100_000], [3, 1], "first_exhausted", 7)
    assert (found[:, 0] == 0).mean() == pytest.approx(0.75, abs=0.01)
    assert len(found) == pytest.approx(100_000 / 0.75, rel=0.01)
    assert (found == mix_indices([100_000, 100_000], [3, 1], "first_exhausted", 7)).all()
    assert not (found[:1000] == mix_indices([100_000, 100_000], [3, 1], "first_exhausted", 8)[:1000]).all()


def test_nothing_to_mix() -> None:
    assert mix_indices([], [], "first_exhausted", 0).shape == (0, 2)
    assert mix_indices([3, 0], [1, 1], "all_exhausted", 0).shape == (0, 2)


@given(n=st.integers(0, 200), ratio=st.floats(0, 0.99), seed=st.integers(0, 100))
def test_split_is_a_partition(n: int, ratio: float, seed: int) -> None:
    train, held = split_indices(n, ratio, seed)
    assert sorted([*train, *held]) == list(range(n))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
    if n > 1 and ratio > 0:
        assert len(train) >= 1 and len(held) >= 1 and abs(len(held) - n * ratio) <= 1
    else:
        assert len(held) == 0
