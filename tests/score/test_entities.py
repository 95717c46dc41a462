"""Entities: schemes, sequences that break them, and seqeval's numbers."""

from __future__ import annotations

import random

import pytest

from luthier.score.entities import entities, named, scheme_of, score, torn


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-a", "I-a", "O", "B-b"], [("a", 0, 1), ("b", 3, 3)]),
        (["B-a", "B-a"], [("a", 0, 0), ("a", 1, 1)]),
        (["B-a", "I-b"], [("a", 0, 0), ("b", 1, 1)]),
        (["I-a", "I-a", "O"], [("a", 0, 1)]),
        (["B-a", "M-a", "E-a", "S-b"], [("a", 0, 2), ("b", 3, 3)]),
        (["B-a", "I-a", "L-a", "U-b"], [("a", 0, 2), ("b", 3, 3)]),
        (["E-a", "E-a"], [("a", 0, 0), ("a", 1, 1)]),
        ([], []),
    ],
)
def test_entities_are_read(tags: list[str], expected: list[tuple[str, int, int]]):
    assert entities(tags) == expected


def test_schemes_are_told_from_tags():
    assert scheme_of(["O", "B-x", "I-x"]) == "BIO"
    assert scheme_of(["B-x", "M-x", "E-x", "S-x", "O"]) == "BMES"
    assert scheme_of(["B-x", "I-x", "E-x", "S-x", "O"]) == "BIOES"
    assert scheme_of(["B-x", "L-x", "U-x", "O"]) == "BILOU"
    assert scheme_of(["NOUN", "VERB"]) == "none"


@pytest.mark.parametrize(
    ("tags", "closed", "place"),
    [
        ("B-a I-a O B-b B-b", False, None),
        ("O I-a", False, 1),
        ("B-a I-b", False, 1),
        ("I-a", False, 0),
        ("O B-a M-a E-a S-b", True, None),
        ("B M E S", True, None),
        ("B-a I-a L-a U-b O", True, None),
        ("B-a O", True, 1),
        ("B-a M-a", True, 1),
        ("B-a B-a E-a", True, 1),
        ("S-a E-a", True, 1),
        ("M-a E-a", True, 0),
        ("B-a M-b E-b", True, 1),
        ("B-a M-a S-a", True, 2),
        ("", True, None),
    ],
)
def test_torn_tags_are_found_where_they_tear(tags: str, closed: bool, place: int | None):
    assert torn(tags.split(), closed=closed) == place


def test_scores_are_those_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    tags = ["O", "O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("a", "b"))]
    for _ in range(60):
        lengths = [rng.randint(1, 12) for _ in range(4)]
        mine, theirs = ([[rng.choice(tags) for _ in range(n)] for n in lengths] for _ in range(2))
        theirs = [[old if rng.random() < 0.7 else new for old, new in zip(a, b, strict=True)]
                  for a, b in zip(mine, theirs, strict=True)]  # fmt: skip
        found = score(mine, theirs)
        assert found["precision"] == pytest.approx(metrics.precision_score(theirs, mine, zero_division=0))
        assert found["recall"] == pytest.approx(metrics.recall_score(theirs, mine, zero_division=0))
        assert found["f1"] == pytest.approx(metrics.f1_score(theirs, mine, zero_division=0))
        macro = metrics.f1_score(theirs, mine, average="macro", zero_division=0)
        assert found["macro_f1"] == pytest.approx(macro)


def test_numbers_count_through_names():
    names = ("O", "B-a", "I-a")
    assert named(["0", "1", "2"], names) == names
    assert named(["O", "2", "3", "x"], names) == ("O", "I-a", "3", "x"), "what has no name is left as it is"
    assert named(["0", "1"], ("1", "0")) == ("0", "1"), "numbers that are names are names"
