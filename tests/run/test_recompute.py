"""What is kept for the backward pass is the fastest that fits, by trial steps whose memory is made up here."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.data.batch import Group, Tokens
from luthier.model.layer import Keep
from luthier.run.recompute import Choice, choose, random_trial, repeated_trial

WEIGHTS, PER_TOKEN = 1000, {"all": 14, "most": 10, "some": 4, "input": 1}


def measure(keep: Keep, tokens: int) -> int:
    return WEIGHTS + PER_TOKEN[keep] * tokens


@pytest.mark.parametrize(
    ("available", "keep"),
    [(300_000, "all"), (240_000, "most"), (200_000, "most"), (150_000, "some"), (60_000, "input"), (10, "input")],
)
def test_the_fastest_that_fits_is_kept(available: int, keep: Keep) -> None:
    choice = choose(measure, 16_384, later=500, available=available)
    assert choice == Choice(keep, WEIGHTS + PER_TOKEN[keep] * 16_384 + 500, available)


def test_small_steps_are_tried_whole() -> None:
    tried: list[tuple[Keep, int]] = []

    def measure_and_tell(keep: Keep, tokens: int) -> int:
        tried.append((keep, tokens))
        return measure(keep, tokens)

    assert choose(measure_and_tell, 700, later=0, available=12_000).keep == "all"
    assert tried == [("all", 700)]


def test_a_trial_without_room_rules_its_way_out() -> None:
    choice = choose(lambda keep, tokens: None if keep in ("all", "most") else measure(keep, tokens), 700, 0, 10**9)
    assert choice.keep == "some"
    nothing = choose(lambda keep, tokens: None, 700, 0, 10**9)
    assert nothing == Choice("input", None, 10**9)


def test_what_the_optimizer_will_hold_counts() -> None:
    assert choose(measure, 700, later=0, available=10_000).keep == "most"
    assert choose(measure, 700, later=5_000, available=10_000).keep == "some"


def test_a_model_that_knows_two_ways_is_tried_with_two() -> None:
    assert choose(measure, 16_384, 0, 150_000, ("most", "input")).keep == "input"


@pytest.mark.parametrize(("tokens", "longest", "lengths"), [(10, 4, (4, 4, 2)), (8, 4, (4, 4)), (3, 4, (3,))])
def test_a_trial_has_all_its_tokens_and_trains_them(tokens: int, longest: int, lengths: tuple[int, ...]) -> None:
    batch = random_trial(tokens, longest, vocabulary=50)
    assert batch.lengths == lengths and batch.tokens == tokens
    assert len(batch.trained_R) == tokens - len(lengths)
    assert int(batch.ids_T.max()) < 50


def test_a_trial_repeats_a_sample_that_is_more_than_text() -> None:
    tokens = Tokens(
        np.arange(4, dtype=np.int32), np.ones(4, np.float32), np.zeros(4, np.int32), None, np.ones(2, np.float32)
    )
    like = Group((tokens, tokens), kind=2)
    for room, times in ((3, 1), (8, 1), (30, 3)):
        batch = repeated_trial(room, like)
        assert batch.groups == (2,) * times and batch.kind == 2 and batch.values_SK.shape == (2 * times, 2)
