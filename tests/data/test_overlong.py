from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batch import Group, Tokens
from luthier.data.overlong import fit


def one(ids: list[int], weights: list[float]) -> Group:
    return Group((Tokens(np.array(ids, dtype=np.int32), np.array(weights, dtype=np.float32)),))


LONG = one([1, 2, 3, 4, 5, 6, 9], [0, 0, 0, 1, 1, 1, 1])


def test_what_fits_is_left_alone() -> None:
    assert fit(LONG, 7, "drop") == ([LONG], "whole")


def test_truncate_keeps_the_start() -> None:
    (group,), outcome = fit(LONG, 5, "truncate")
    assert outcome == "truncated"
    assert group.sequences[0].ids.tolist() == [1, 2, 3, 4, 5]
    assert group.sequences[0].weights.tolist() == [0, 0, 0, 1, 1]


def test_truncate_never_leaves_a_sequence_without_target() -> None:
    assert fit(LONG, 3, "truncate") == ([], "no_target_left")
    pair = Group((*one([1, 2, 9], [0, 1, 1]).sequences, *LONG.sequences))
    assert fit(pair, 3, "truncate") == ([], "no_target_left")
    (group,), _ = fit(pair, 4, "truncate")
    assert [len(tokens) for tokens in group.sequences] == [3, 4]


def test_drop_drops() -> None:
    assert fit(LONG, 6, "drop") == ([], "too_long")


def test_the_sides_of_a_pair_are_truncated_instead_of_split() -> None:
    (group,), outcome = fit(Group((*LONG.sequences, *LONG.sequences)), 5, "split")
    assert outcome == "truncated" and len(group.sequences) == 2


def test_split_leaves_out_pieces_without_target() -> None:
    pieces, outcome = fit(LONG, 3, "split")
    assert outcome == "split"
    assert [piece.sequences[0].ids.tolist() for piece in pieces] == [[3, 4, 5], [5, 6, 9]]
    assert fit(one([1, 2, 3, 4], [0, 0, 0, 0]), 3, "split") == ([], "no_target_left")


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=40), st.integers(2, 12))
def test_split_trains_every_token_exactly_once(weights: list[float], length: int) -> None:
    weights = [0.0, *weights]
    pieces, _ = fit(one(list(range(len(weights))), weights), length, "split")
    found = np.zeros(len(weights))
    for piece in pieces:
        (part,) = piece.sequences
        assert len(part) <= length
        assert part.weights.any() or not np.any(weights)
        assert part.weights[0] == 0
        found[part.ids] += part.weights
    assert found.tolist() == weights
