"""The verb inspect: every number of its report on rows made for it, and the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from workshop import run, write_rows

from luthier.prepare import advice, census


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


def test_tokens_are_estimated_from_some_rows(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": f"This is English sentence number {n} of two hundred."} for n in range(100)]
    rows += [{"text": f"这是第{n}个中文句子，总共有一百个。"} for n in range(100)]
    file = write_rows(tmp_path / "in.jsonl", rows)
    exact = run("inspect", capsys, tmp_path / "all", file, flags=[]).report["summary"]["tokens"]
    some = run("inspect", capsys, tmp_path / "some", file, flags=["--token_rows", "20"]).report["summary"]["tokens"]
    assert exact > 200 and abs(some - exact) / exact < 0.03


def test_bad_wishes_are_named(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    none = run("inspect", capsys, tmp_path / "a", file, flags=["--label", "lable"])
    assert (none.code, none.error["code"]) == (3, "no_label")
    missing = run("inspect", capsys, tmp_path / "b", file, flags=["--tokenizer", str(tmp_path / "nowhere")])
    assert missing.code == 2


def test_bins_and_spread() -> None:
    assert census.bins(np.array([0, 1, 2, 3, 4, 5])) == (["0", "≤ 1", "≤ 2", "≤ 4", "≤ 8"], [1, 1, 1, 2, 1])
    assert census.bins(np.array([], np.int64)) == ([], [])
    assert census.spread(np.arange(101))["median"] == 50 and census.spread(np.arange(101))["99 %"] == 99


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
