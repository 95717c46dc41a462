"""Scores over drawings, comparison and macro-F1, against references computed otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from luthier.evaluate.compare import changes
from luthier.evaluate.report import change_table
from luthier.evaluate.task import Result, counted, metric


def results(values: list[float], name: str = "AverageAccuracy") -> list[Result]:
    return [Result(str(n), "", "", "", "", {name: (value, 1.0)}) for n, value in enumerate(values)]


def test_the_interval_is_that_of_the_textbook() -> None:
    draw = np.random.default_rng(1)
    before, after = draw.integers(0, 2, 200).astype(float), draw.integers(0, 2, 200).astype(float)
    (change,) = changes("d", "s", results(list(before)), results(list(after)))
    spread = float(np.std(after - before) / math.sqrt(200))
    assert change.difference == pytest.approx(float(after.mean() - before.mean()))
    assert change.low == pytest.approx(change.difference - 1.96 * spread, abs=0.02)
    assert change.high == pytest.approx(change.difference + 1.96 * spread, abs=0.02)
    assert change.wins == int((after > before).sum()) and change.losses == int((after < before).sum())


def test_one_question_makes_nothing_sure() -> None:
    (change,) = changes("d", "s", results([0.0]), results([1.0]))
    assert (change.num, change.difference, change.wins) == (1, 1.0, 1)
    assert not change.sure and math.isnan(change.low) and math.isnan(change.high)
    assert change_table([change])[0]["Difference"] == "+1.0000" and change_table([change])[0]["95 %"] == ""


def test_less_perplexity_is_a_win() -> None:
    one, other = results([2.0, 3.0, 1.0], "perplexity"), results([1.0, 3.0, 2.0], "perplexity")
    (change,) = changes("d", "s", one, other)
    assert (change.wins, change.losses) == (1, 1)
    assert change.before == pytest.approx(math.exp(2.0))


def test_only_questions_of_both_are_compared() -> None:
    (change,) = changes("d", "s", results([1.0, 0.0, 1.0]), results([1.0, 1.0]))
    assert (change.num, change.before, change.after) == (2, 0.5, 1.0)


def test_macro_f1_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    wanted, found = draw.choice(list("abcd"), 60), draw.choice(list("abce"), 60)
    rows = [Result(str(n), "", "", str(f), str(w), {}) for n, (f, w) in enumerate(zip(found, wanted, strict=True))]
    expected = sklearn.f1_score(wanted, found, average="macro", zero_division=0)
    assert metric("macro-f1", rows) == pytest.approx(expected)
    draws = draw.integers(0, 3, 60).astype(float)
    again = np.repeat(np.arange(60), draws.astype(int))
    expected = sklearn.f1_score(wanted[again], found[again], average="macro", zero_division=0)
    assert counted("macro-f1", rows).value(draws) == pytest.approx(expected)


def test_what_only_one_side_has_is_no_change_and_what_never_counted_is_not_sure() -> None:
    plain = results([0.5, 0.7])
    judged = [replace(one, rates={**one.rates, "judge-win": (1.0, 1.0)}) for one in plain]
    assert [one.metric for one in changes("qa", "en", plain, judged)] == ["AverageAccuracy"]
    unread = [replace(one, rates={"judge-score": (0.0, 0.0)}) for one in plain]
    (change,) = changes("qa", "en", unread, unread)
    assert math.isnan(change.difference) and not change.sure and (change.wins, change.losses) == (0, 0)
    (row,) = change_table([change])
    assert (row["Difference"], row["95 %"]) == ("", "")
