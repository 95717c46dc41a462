"""The verb features and its classifiers: numbers against scikit-learn and hand counts, and the real sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workshop import run, write_rows

from luthier.prepare import baseline
from luthier.prepare.baseline import Bag


def table(report: dict[str, Any], title: str) -> list[dict[str, Any]]:
    return next(table["rows"] for table in report["tables"] if table["title"].startswith(title))


def rows(number: int) -> list[dict[str, Any]]:
    good, bad = ("wonderful great fine", "dreadful boring awful"), ("精彩好看", "无聊难看")
    found = []
    for n in range(number):
        label = n % 2
        words = good[label].split()
        text = (
            f"The film was {words[n % 3]}, scene {n % 7}."
            if n % 4 < 2
            else f"这部电影非常{bad[label][:2]}，第{n % 7}场。"
        )
        found.append({"text": text, "label": ("neg", "pos")[1 - label]})
    return found


@pytest.mark.parametrize("kind", ["logistic", "svm", "bayes"])
def test_words_that_decide_are_found(kind: Any) -> None:
    train = [baseline.analyzed(row["text"]) for row in rows(80)]
    classes = np.array([row["label"] == "pos" for row in rows(80)], np.int64)
    scored = baseline.score(kind, Bag(), train[:60], classes[:60], train[60:], classes[60:], 1)
    assert scored.accuracy == 1.0 and scored.macro_f1 == 1.0
    assert {"精彩", "great"} <= set(scored.telling[1]) and {"无聊", "boring"} <= set(scored.telling[0])


def test_scores_are_those_of_the_definition() -> None:
    train, classes = ["aa", "aa", "bb", "cc"], np.array([0, 0, 1, 2])
    test, truth = ["aa", "bb", "bb", "zz", "cc"], np.array([0, 1, 0, 0, 3])  # class 3 was never seen
    scored = baseline.score("bayes", Bag("counts", 1), train, classes, test, truth, 1)
    assert scored.predicted.tolist() == [0, 1, 1, 0, 2]
    assert scored.accuracy == 3 / 5
    assert scored.recall.tolist() == pytest.approx([2 / 3, 1.0, 0.0, 0.0])
    assert scored.precision.tolist() == pytest.approx([1.0, 1 / 2, 0.0, 0.0])
    assert scored.macro_f1 == pytest.approx((0.8 + 2 / 3 + 0 + 0) / 4)


def test_bags() -> None:
    train, classes = ["the cat sat", "the dog ran"], np.array([0, 1])
    numbers = [
        baseline.score("bayes", bag, train, classes, train, classes, 1).features
        for bag in (Bag("counts", 1), Bag("counts", 2), Bag(ngrams=1, remove_stop_words=True), Bag(ngrams=1, most=2))
    ]
    assert numbers == [5, 9, 4, 2]
    assert baseline.score("bayes", Bag(ngrams=1, characters=3), train, classes, train, classes, 1).features > 5


def test_a_part_of_every_class_is_held_out() -> None:
    codes = np.array([0] * 50 + [1] * 5 + [2])
    held = baseline.halves(codes, 0.2, 3)
    assert [int(held[codes == code].sum()) for code in range(3)] == [10, 1, 0]
    assert (held == baseline.halves(codes, 0.2, 3)).all() and (held != baseline.halves(codes, 0.2, 4)).any()


def test_the_verb(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "in.jsonl", [*rows(80), {"text": "no label"}])
    done = run("features", capsys, tmp_path / "out", file, flags=[])
    assert done.code == 0, done.said
    assert done.report["summary"] == {
        "training rows": 64,
        "test rows": 16,
        "classes": 2,
        "accuracy to beat": 1.0,
        "macro F1 of it": 1.0,
    }
    assert done.report["counts"] == {"without_label": 1}
    assert table(done.report, "Scores")[0]["accuracy"] == 0.5
    other = write_rows(tmp_path / "test.jsonl", [*rows(10), {"text": "so so", "label": "mixed"}])
    done = run("features", capsys, tmp_path / "two", file, flags=["--test", str(other), "--classifiers", "bayes"])
    assert done.report["summary"]["accuracy to beat"] == round(10 / 11, 4) and done.report["summary"]["classes"] == 3


def test_bad_wishes_are_named(tmp_path: Path, capsys: Any) -> None:
    one = write_rows(tmp_path / "one.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}])
    none = write_rows(tmp_path / "none.jsonl", [{"text": "a"}, {"text": "b"}])
    few = write_rows(tmp_path / "few.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    for file, code in ((one, "one_class"), (none, "no_label"), (few, "too_few_rows")):
        done = run("features", capsys, tmp_path / "out", file, flags=[])
        assert (done.code, done.error["code"]) == (3, code)
    empty = write_rows(tmp_path / "empty.jsonl", [{"text": "...", "label": "xy"[n % 2]} for n in range(8)])
    done = run("features", capsys, tmp_path / "out", empty, flags=[])
    assert (done.code, done.error["code"]) == (3, "no_words")


def test_sentence_polarity(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = test_data / "polarity-jsonl"
    flags = ["--test", str(folder / "sentence_polarity_test.jsonl"), "--classifiers", "bayes"]
    done = run("features", capsys, tmp_path / "out", folder / "sentence_polarity_train.jsonl", flags=flags)
    assert done.report["summary"]["training rows"] == 9596 and done.report["summary"]["test rows"] == 1066
    assert 0.77 < done.report["summary"]["accuracy to beat"] < 0.80
