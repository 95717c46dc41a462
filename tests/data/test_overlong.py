from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batch import Group, Tokens
from luthier.data.overlong import fit, trains_stop

STOP = frozenset([9])


def tokens(ids: list[int], weights: list[float]) -> Tokens:
    return Tokens(np.array(ids, dtype=np.int32), np.array(weights, dtype=np.float32))


def one(ids: list[int], weights: list[float]) -> Group:
    return Group((tokens(ids, weights),))


LONG = one([1, 2, 3, 4, 5, 6, 9], [0, 0, 0, 1, 1, 1, 1])


def test_what_fits_is_left_alone() -> None:
    fitted = fit(LONG, 7, "truncate", STOP)
    assert fitted.groups == (LONG,) and not fitted.truncated and not fitted.dropped


def test_truncate_keeps_the_start_and_tells_that_the_stop_is_lost() -> None:
    fitted = fit(LONG, 5, "truncate", STOP)
    assert fitted.groups[0].sequences[0].ids.tolist() == [1, 2, 3, 4, 5]
    assert fitted.truncated and fitted.stop_lost


def test_truncate_never_leaves_a_sequence_without_target() -> None:
    assert fit(LONG, 3, "truncate", STOP).dropped == "no_target_left"
    pair = Group((*one([1, 2, 9], [0, 1, 1]).sequences, *LONG.sequences))
    assert fit(pair, 3, "truncate", STOP).dropped == "no_target_left"
    fitted = fit(pair, 4, "truncate", STOP)
    assert [len(tokens) for tokens in fitted.groups[0].sequences] == [3, 4]


def test_drop_drops_and_split_cannot_split_a_pair() -> None:
    assert fit(LONG, 5, "drop", STOP).dropped == "overlong"
    assert fit(Group((*LONG.sequences, *LONG.sequences)), 5, "split", STOP).dropped == "overlong"


def test_split_leaves_out_pieces_without_target() -> None:
    pieces = fit(LONG, 3, "split", STOP).groups
    assert [piece.sequences[0].ids.tolist() for piece in pieces] == [[3, 4, 5], [5, 6, 9]]
    assert fit(one([1, 2, 3, 4], [0, 0, 0, 0]), 3, "split", STOP).dropped == "no_target_left"


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=40), st.integers(2, 12))
def test_split_trains_every_token_exactly_once(weights: list[float], length: int) -> None:
    weights = [0.0, *weights]
    pieces = fit(one(list(range(len(weights))), weights), length, "split", STOP).groups
    found = np.zeros(len(weights))
    for piece in pieces:
        (part,) = piece.sequences
        assert len(part) <= length or len(pieces) == 1
        assert part.weights.any() or not np.any(weights)
        assert part.weights[0] == 0
        found[part.ids] += part.weights
    assert found.tolist() == weights


def test_the_stop_counts_when_it_is_the_last_trained_token() -> None:
    assert trains_stop(tokens([1, 9, 2], [0, 1, 0]), STOP)
    assert not trains_stop(tokens([1, 2, 9], [0, 1, 0]), STOP)
    assert not trains_stop(tokens([9], [0]), STOP)
