"""Agreement: published examples, and scikit-learn where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from luthier.score import agreement
from luthier.score.agreement import Ratings

# Krippendorff (2011), section E: four observers, twelve units, with missing answers.
_ = None
PUBLISHED = [
    [1, 1, _, 1],
    [2, 2, 3, 2],
    [3, 3, 3, 3],
    [3, 3, 3, 3],
    [2, 2, 2, 2],
    [1, 2, 3, 4],
    [4, 4, 4, 4],
    [1, 1, 2, 1],
    [2, 2, 2, 2],
    [_, 5, 5, 5],
    [_, _, 1, 1],
    [_, _, 3, _],
]
# Fleiss (1971): the worked example of many textbooks, 14 raters, ten subjects, five classes.
FLEISS = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level: agreement.Level, expected: float) -> None:
    assert agreement.krippendorff_alpha(Ratings.of(PUBLISHED), level) == pytest.approx(expected, abs=5e-4)


def test_fleiss_kappa_of_the_published_example() -> None:
    assert agreement.fleiss_kappa(FLEISS) == pytest.approx(0.210, abs=5e-4)


def test_cohen_kappa_of_a_textbook_table() -> None:
    one = np.repeat([0, 0, 1, 1], [20, 5, 10, 15])
    other = np.repeat([0, 1, 0, 1], [20, 5, 10, 15])
    assert agreement.cohen_kappa(one, other, 2) == pytest.approx(0.4)
    assert agreement.cohen_kappa(one, one, 2) == 1.0


def test_cohen_kappa_equals_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    one = draw.integers(0, 5, 300)
    other = np.where(draw.random(300) < 0.6, one, draw.integers(0, 5, 300))
    assert agreement.cohen_kappa(one, other, 5) == pytest.approx(metrics.cohen_kappa_score(one, other))


def test_alpha_of_two_complete_annotators_tends_to_cohen_and_chance_to_zero() -> None:
    draw = np.random.default_rng(1)
    codes = draw.integers(0, 3, (20_000, 2))
    assert abs(agreement.krippendorff_alpha(Ratings(codes, (0, 1, 2)))) < 0.02


def test_an_annotator_who_reads_the_guideline_upside_down_stands_out() -> None:
    draw = np.random.default_rng(2)
    truth = draw.integers(0, 2, 200)
    good = [np.where(draw.random(200) < 0.9, truth, 1 - truth) for _ in range(3)]
    ratings = Ratings(np.stack([*good, 1 - truth], axis=1), ("no", "yes"))
    found = agreement.by_annotator(ratings)
    assert found[3].kappa < 0 < min(person.kappa for person in found[:3])
    # The others of a good one are right together in 81 of 100 items: 0.9 * 0.81 + 0.1 * 0.19.
    assert found[3].with_majority < 0.2 and found[0].with_majority == pytest.approx(0.75, abs=0.08)
    assert found[3].alpha_without > agreement.krippendorff_alpha(ratings) + 0.3
    assert [person.answers for person in found] == [200] * 4


def test_per_class_alpha_finds_the_class_nobody_agrees_on() -> None:
    rows = [["a", "a"]] * 20 + [["b", "b"]] * 20 + [["b", "c"]] * 5 + [["a", "c"]] * 5
    ratings = Ratings.of(rows)
    by_class = dict(zip(ratings.classes, agreement.alpha_by_class(ratings), strict=True))
    assert by_class["c"] < 0 < by_class["b"] and by_class["a"] > 0.7


def test_majority_is_silent_on_ties() -> None:
    codes, share = agreement.majority(Ratings.of([["a", "a", "b"], ["a", "b", None], [None, None, None], ["b"] * 3]))
    assert codes.tolist() == [0, -1, -1, 1]
    assert share.tolist() == pytest.approx([2 / 3, 1 / 2, 0, 1])


def test_degenerate_ratings_are_not_numbers() -> None:
    alone = Ratings.of([["a", None], [None, "b"]])
    assert math.isnan(agreement.krippendorff_alpha(alone))
    assert math.isnan(agreement.krippendorff_alpha(Ratings.of([["a", "a"]] * 3)))
    assert math.isnan(agreement.cohen_kappa(np.array([0, -1]), np.array([-1, 0]), 1))
    assert math.isnan(agreement.fleiss_kappa(np.array([[2, 0], [2, 0]])))
    with pytest.raises(ValueError, match="same number"):
        agreement.fleiss_kappa(np.array([[2, 0], [1, 0]]))
    with pytest.raises(ValueError, match="needs numbers"):
        agreement.krippendorff_alpha(Ratings.of([["a", "b"], ["a", "a"]]), "interval")
    with pytest.raises(ValueError, match="one place"):
        Ratings.of([["a"], ["a", "b"]])


def test_classes_are_ordered_as_numbers() -> None:
    assert Ratings.of([["10", "9"], ["2", "x"]]).classes == ("2", "9", "10", "x")


def test_three_people_who_judged_pairs_of_answers(test_data: Path) -> None:
    rows = json.loads((test_data / "pandalm/testset-v1.json").read_text(encoding="utf-8"))
    ratings = Ratings.of([[row[f"annotator{number}"] for number in (1, 2, 3)] for row in rows])
    alpha, kappa = agreement.krippendorff_alpha(ratings), agreement.fleiss_kappa(ratings.counts_NK)
    assert len(rows) == 999
    # The correction for few items is all that tells them apart where nothing is missing.
    assert alpha == pytest.approx(kappa + (1 - kappa) / (3 * len(rows)), abs=1e-9)
    assert 0.7 < kappa < 0.9
