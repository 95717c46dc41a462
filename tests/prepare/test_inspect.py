"""The verb inspect: every number of its report on rows made for it, and the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workshop import run, write_rows

from luthier.prepare import advice, chunks, distribution, gaps
from luthier.prepare.census import evenly
from luthier.prepare.distribution import bins, deviation_of, mean_of, median_of, quantiles, spread
from luthier.prepare.spill import Spill


def table(report: dict[str, Any], title: str) -> list[dict[str, Any]]:
    return next(table["rows"] for table in report["tables"] if table["title"] == title)


def test_everything_is_counted(tmp_path: Path, capsys: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"An English sentence, number {n}.", "label": "a", "age": n} for n in range(8)
    ]
    rows += [
        {"text": "这是一个中文句子。", "label": "b", "age": 900},
        {"text": "这是一个中文句子。", "label": "b", "age": 900},
        {"text": "cafÃ© mail me: li@example.com, 13812345678, a\x07", "label": None, "age": None},
        {"text": "<p>page &amp; sk-abcdefghijklmnop1234</p>", "label": "a", "extra": [1]},
    ]
    done = run("inspect", capsys, tmp_path / "out", write_rows(tmp_path / "in.jsonl", rows), flags=["--label", "label"])
    assert done.code == 0, done.said
    report = done.report
    assert report["summary"]["duplicates"] == 1 and report["summary"]["classes"] == 2
    counts = report["counts"]
    assert counts == {"encoding": 1, "control_characters": 1, "html": 1, "email": 1, "phone": 1, "secret": 1}
    shown = json.dumps(report)
    assert "13812345678" not in shown and "li@example" not in shown and "abcdefghijklmnop" not in shown
    columns = {row["column"]: row for row in table(report, "Columns")}
    assert columns["label"]["missing"] == 1 and columns["age"]["missing"] == 2
    assert columns["age"]["holds"] == "number" and columns["extra"]["holds"] == "list"
    assert [row["rows"] for row in table(report, "Classes in label")] == [9, 2]
    languages = {row["language"]: row["rows"] for row in table(report, "Languages")}
    assert languages["zh"] == 2 and languages["en"] >= 8 and sum(languages.values()) == 12
    numbers = {row["column"]: row for row in table(report, "Numbers")}
    assert numbers["age"]["outliers by iqr"] == 2
    assert table(report, "Files")[0]["encoding"] == "utf-8"
    assert {chart["title"] for chart in report["charts"]} >= {"Characters of a row", "Tokens of a row", "Languages"}


def test_the_quantiles_of_a_column_are_looked_for_once(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    found = distribution.quantiles

    def counting(values: Spill, marks: Any) -> Any:
        looked.append(id(values))
        return found(values, marks)

    for room in (distribution, gaps):
        monkeypatch.setattr(room, "quantiles", counting)
    file = write_rows(tmp_path / "in.jsonl", [{"query": f"{n}?", "response": "so " * n, "age": n} for n in range(9)])
    report = run("inspect", capsys, tmp_path / "out", file, flags=[]).report
    # Characters of rows, questions and answers, ages, tokens.
    assert len(looked) == len(set(looked)) == 5
    assert {row["column"] for row in table(report, "Numbers")} == {"characters", "age"}
    assert len(table(report, "Lengths")) == 4


def test_tokens_are_estimated_from_some_rows(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": f"This is English sentence number {n} of two hundred."} for n in range(100)]
    rows += [{"text": f"这是第{n}个中文句子，总共有一百个。"} for n in range(100)]
    file = write_rows(tmp_path / "in.jsonl", rows)
    exact = run("inspect", capsys, tmp_path / "all", file, flags=[]).report["summary"]["tokens"]
    some = run("inspect", capsys, tmp_path / "some", file, flags=["--token_rows", "20"]).report["summary"]["tokens"]
    assert exact > 200 and abs(some - exact) / exact < 0.03


def test_a_report_is_the_same_when_columns_go_to_files(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(8)
    rows: list[dict[str, Any]] = [
        {"question": "她在画画。" * int(rng.integers(1, 9)), "answer": f"No. {n % 250}", "label": f"l{n % 7}"}
        | {f"score {at}": float(rng.normal()) * 10**at for at in range(3)}
        for n in range(400)
    ]
    rows += [{**row, "score 1": None} for row in rows[:40]] + rows[:5]
    file = write_rows(tmp_path / "in.jsonl", rows)
    held = run("inspect", capsys, tmp_path / "held", file, flags=["--token_rows", "100"]).report
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4000)
    monkeypatch.setattr("luthier.prepare.spill._BLOCK", 160)
    monkeypatch.setattr("luthier.prepare.spill.IN_MEMORY", 900)
    monkeypatch.setattr("luthier.prepare.verbs.inspect._HELD", 300)
    monkeypatch.setattr("luthier.prepare.groups._MOST_AT_ONCE", 150)
    monkeypatch.setattr(Spill.__init__, "__defaults__", (0, 500))
    assert run("inspect", capsys, tmp_path / "stored", file, flags=["--token_rows", "100"]).report == held
    assert held["summary"]["duplicates"] == 5 and held["summary"]["classes"] == 7
    assert [row["column"] for row in table(held, "Numbers")] == ["characters", "score 0", "score 1", "score 2"]


def test_bad_wishes_are_named(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    none = run("inspect", capsys, tmp_path / "a", file, flags=["--label", "lable"])
    assert (none.code, none.error["code"]) == (3, "no_label")
    missing = run("inspect", capsys, tmp_path / "b", file, flags=["--tokenizer", str(tmp_path / "nowhere")])
    assert missing.code == 2


def spilled(path: Path, values: Any, dtype: Any, pieces: int = 1, limit: int = 10**6) -> Spill:
    """Values in a column that keeps no more than `limit` bytes in memory."""
    spill = Spill(path, dtype, limit=limit)
    for piece in np.array_split(np.asarray(values, dtype), pieces):
        spill.append(piece)
    return spill


def test_bins_and_spread(tmp_path: Path) -> None:
    found = bins(spilled(tmp_path / "a", [0, 1, 2, 3, 4, 5], np.int32))
    assert found == (["0", "≤ 1", "≤ 2", "≤ 4", "≤ 8"], [1, 1, 1, 2, 1])
    assert bins(spilled(tmp_path / "b", [], np.int32)) == bins(spilled(tmp_path / "b", [0, 0], np.int32)) == ([], [])
    shown = spread(spilled(tmp_path / "c", np.arange(101), np.int32, 7, 40)).shown()
    assert shown["median"] == 50 and shown["99 %"] == 99 and shown["mean"] == 50


@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_distributions_of_columns_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr("luthier.prepare.spill._BLOCK", 64)
    rng = np.random.default_rng(3)
    marks = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
    for at, count in enumerate((1, 2, 5, 100, 1001)):
        values = (rng.normal(size=count) * 10.0 ** rng.integers(-3, 7)).astype(dtype)
        values[rng.random(count) < 0.3] = 0
        told = values
        if dtype is np.float64:
            told = np.concatenate([[np.nan], values, [np.nan, np.inf]])
        column = spilled(tmp_path / f"{at}", told, dtype, 9, 100)
        assert quantiles(column, marks).tolist() == np.quantile(values, marks).tolist()
        assert median_of(column) == np.median(values)
        assert mean_of(column) == pytest.approx(values.mean(), rel=1e-12)
        assert deviation_of(column, mean_of(column)) == pytest.approx(values.std(), rel=1e-9)
        held = spilled(tmp_path / "held", told, dtype)
        assert (mean_of(held), spread(held)) == (mean_of(column), spread(column))
    nothing = spilled(tmp_path / "nothing", [np.nan], np.float64)
    assert np.isnan([mean_of(nothing), median_of(nothing), *quantiles(nothing, marks)]).all()


def test_rows_lie_evenly_over_all_however_they_are_cut() -> None:
    for total, count in ((1, 1), (7, 1), (7, 7), (100, 3), (10_007, 5000), (10_007, 9999)):
        expected = np.unique(np.linspace(0, total - 1, count).astype(np.int64))
        for size in (1, 3, total) if total < 1000 else (613, total):
            cuts = range(0, total, size)
            found = np.concatenate([evenly(total, count, start, min(start + size, total)) for start in cuts])
            assert found.tolist() == expected.tolist()


def test_a_column_with_a_value_for_every_row_is_no_label(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": "Something.", "category": f"value {n}"} for n in range(10_001)]
    file = write_rows(tmp_path / "in.jsonl", rows)
    done = run("inspect", capsys, tmp_path / "out", file, flags=["--token_rows", "1"])
    assert done.code == 0 and "classes" not in done.report["summary"]
    refused = run("inspect", capsys, tmp_path / "out", file, flags=["--token_rows", "1", "--label", "category"])
    assert (refused.code, refused.error["code"]) == (3, "no_label")


def test_rules_of_thumb() -> None:
    assert advice.advice_for("alpaca", None) is advice.SFT and advice.advice_for("text", None) is advice.PRETRAIN
    assert advice.advice_for("text", "classification") is advice.CLASSIFY and advice.advice_for(None, None) is None
    assert "less than" in advice.judged(advice.SFT, 10) and "begin with" in advice.judged(advice.SFT, 100)


def test_a_broken_line_is_reported(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    done = run("inspect", capsys, tmp_path / "out", test_data / "sms-spam" / "SMSSpamCollection", flags=[])
    assert done.code == 0, done.said
    assert done.report["rows"] == {"read": 5575, "rejected": 1, "used": 5574, "written": 0}
    assert (done.rejected[0]["line"], done.rejected[0]["code"]) == (6, "malformed_csv")
    classes = {row["label"]: row["rows"] for row in table(done.report, "Classes in label")}
    assert classes == {"ham": 4827, "spam": 747}
