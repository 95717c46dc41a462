"""Splits have the wanted sizes in every class, tear no group, and follow the clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workshop import run, write_rows

from luthier.cli.app import main
from luthier.prepare.splits import split_by_time, split_groups


def test_a_plain_split_is_exact_and_drawn_by_the_seed() -> None:
    rows = np.arange(1000)
    parts = split_groups(rows, np.zeros(1000, np.int64), (0.9, 0.05, 0.05), 1)
    assert np.bincount(parts).tolist() == [900, 50, 50]
    assert np.array_equal(parts, split_groups(rows, np.zeros(1000, np.int64), (18, 1, 1), 1))
    assert not np.array_equal(parts, split_groups(rows, np.zeros(1000, np.int64), (0.9, 0.05, 0.05), 2))
    assert 0.2 < (parts[:500] > 0).mean() / (parts > 0).mean() < 1.8  # not the first or the last rows


def test_every_class_is_divided_by_the_ratios_and_so_is_the_whole() -> None:
    counts = [1, 2, 3, 7, 20, 33, 100, 501]
    strata = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(0).shuffle(strata)
    parts = split_groups(np.arange(len(strata)), strata, (0.8, 0.1, 0.1), 3)
    total = len(strata)
    assert np.abs(np.bincount(parts) - np.array([0.8, 0.1, 0.1]) * total).max() <= 1
    for kind, count in enumerate(counts):
        got = np.bincount(parts[strata == kind], minlength=3)
        assert np.abs(got - np.array([0.8, 0.1, 0.1]) * count).max() < 2, (kind, got)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_torn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 120, 2000)
    strata = rng.integers(0, 4, 2000)
    parts = split_groups(groups, strata, (0.7, 0.2, 0.1), seed)
    for group in range(120):
        assert len(np.unique(parts[groups == group])) <= 1
    for kind in range(4):
        share = np.bincount(parts[strata == kind], minlength=3) / (strata == kind).sum()
        assert np.abs(share - np.array([0.7, 0.2, 0.1])).max() < 0.05


def test_large_groups_and_single_rows_together_keep_the_ratios() -> None:
    groups = np.concatenate([np.repeat(np.arange(5), 40), np.arange(5, 805)])
    parts = split_groups(groups, np.zeros(1000, np.int64), (0.5, 0.5), 0)
    assert np.bincount(parts).tolist() == [500, 500]


def test_time_goes_forward_and_equal_times_stay_together() -> None:
    times = np.array([5.0, 1, 2, 2, 2, 3, 4, 9, 8, 7])
    parts = split_by_time(times, np.arange(10), (0.4, 0.3, 0.3))
    assert [times[parts == part].max() for part in (0, 1)] == [times[parts == 0].max(), times[parts == 1].max()]
    assert times[parts == 0].max() < times[parts == 1].min() <= times[parts == 1].max() < times[parts == 2].min()
    assert len(set(parts[times == 2])) == 1
    grouped = split_by_time(times, np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8]), (0.4, 0.3, 0.3))
    assert grouped[1] == grouped[0]  # the early row of a group goes with its latest one


def test_the_verb_writes_one_file_for_each_part(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": f"text number {number}", "label": "ab"[number % 2], "doc": number // 4} for number in range(200)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ["--ratio", "8", "1", "1", "--stratify", "label", "--group", "doc"]
    done = run("split", capsys, tmp_path / "out", file, flags=flags)
    assert done.code == 0, done.said
    parts = {
        path.name.split(".")[1]: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "out").glob("out.*.jsonl")
    }
    assert {name: len(found) for name, found in parts.items()} == {"train": 160, "validation": 20, "test": 20}
    docs = {name: {row["doc"] for row in found} for name, found in parts.items()}
    assert not docs["train"] & docs["validation"] and not docs["train"] & docs["test"]
    assert sum(row["label"] == "a" for row in parts["test"]) == 10
    assert sorted(json.dumps(row) for found in parts.values() for row in found) == sorted(map(json.dumps, rows))
    assert done.report["parts"] == {"train": 160, "validation": 20, "test": 20}


def test_equal_texts_stay_on_one_side_unless_told_otherwise(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": f"text {number // 2}", "id": number} for number in range(100)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    done = run("split", capsys, tmp_path / "out", file, flags=["--ratio", "0.5", "0.5"])
    texts = [
        {json.loads(line)["text"] for line in path.read_text().splitlines()}
        for path in sorted((tmp_path / "out").glob("out.*.jsonl"))
    ]
    assert not texts[0] & texts[1]
    assert done.report["summary"]["groups kept whole"] == 50
    flags = ["--ratio", "0.5", "0.5", "--no_same_text"]
    assert run("split", capsys, tmp_path / "torn", file, flags=flags).report["summary"]["groups kept whole"] == 0


def test_time_in_many_forms(tmp_path: Path, capsys: Any) -> None:
    days = ["2024-05-01", "2024-05-02T10:00:00", "2024-05-02T12:00:00+02:00", "2024-05-03 08:30:00Z", "2024-06-01"]
    file = write_rows(tmp_path / "rows.jsonl", [{"text": f"t{n}", "at": day} for n, day in enumerate(reversed(days))])
    flags = ["--ratio", "3", "2", "--time", "at"]
    assert run("split", capsys, tmp_path / "out", file, flags=flags).code == 0
    late = [json.loads(line)["at"] for line in (tmp_path / "out" / "out.validation.jsonl").read_text().splitlines()]
    assert late == ["2024-06-01", "2024-05-03 08:30:00Z"]
    bad = write_rows(tmp_path / "bad.jsonl", [{"text": "a", "at": "2024-01-01"}, {"text": "b", "at": "yesterday"}])
    done = run("split", capsys, tmp_path / "bad", bad, flags=flags)
    assert (done.code, done.error["code"], done.error["where"]) == (3, "not_a_time", f"{bad}:2")


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--ratio", "0.9"], "ratio"),
        (["--ratio", "0.9", "-1"], "--ratio: every share must be above 0"),
        (["--ratio", "1", "1", "1", "1"], "names"),
        (["--ratio", "1", "1", "--names", "a"], "one for each"),
        (["--ratio", "1", "1", "--names", "a", "../b"], "letters"),
        (["--time", "t", "--stratify", "label"], "stratified"),
    ],
)
def test_settings_that_cannot_work(flags: list[str], fragment: str, tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])
    done = run("split", capsys, tmp_path / "out", file, flags=flags)
    assert done.code == 2
    assert fragment in done.error["what"]


def test_a_part_of_an_earlier_split_is_told_of(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": f"t{number}"} for number in range(20)])
    for output in (str(tmp_path / "sets"), str(tmp_path / "x.jsonl")):
        words = ["data", "split", str(file), "--output", output, "--ratio"]
        assert main([*words, "8", "1", "1"]) == 0
        assert "was there before" not in capsys.readouterr().err
        assert main([*words, "8", "2"]) == 0
        assert "test.jsonl was there before: it is no part of this split" in capsys.readouterr().err


def test_too_few_rows_for_the_parts(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "same"}, {"text": "same"}])
    done = run("split", capsys, tmp_path / "out", file, flags=["--ratio", "0.5", "0.5"])
    assert (done.code, done.error["code"]) == (3, "empty_part")


def test_banking77_stratified(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    flags = ["--ratio", "0.8", "0.1", "0.1", "--stratify", "category"]
    done = run("split", capsys, tmp_path / "out", test_data / "banking77" / "train.csv", flags=flags)
    assert sum(done.report["parts"].values()) == 10003
    assert abs(done.report["parts"]["train"] - 8002) <= 1
    (table,) = [table for table in done.report["tables"] if "category" in table["title"]]
    assert len(table["rows"]) == 77
    for row in table["rows"]:
        total = row["train"] + row["validation"] + row["test"]
        assert abs(row["train"] - 0.8 * total) < 2 and abs(row["test"] - 0.1 * total) < 2


def test_a_column_that_no_row_has_is_answered_with_those_there_are(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": f"t{number}", "category": "a"} for number in range(9)])
    near = run("split", capsys, tmp_path / "near", file, flags=["--stratify", "categry"])
    assert (near.code, near.error["code"]) == (3, "no_label") and "'category'" in near.error["fix"]
    usual = run("split", capsys, tmp_path / "usual", file, flags=["--stratify", "label"])
    assert usual.error["fix"] == "Did you mean 'category'?"
    far = run("split", capsys, tmp_path / "far", file, flags=["--stratify", "xyz"])
    assert far.error["fix"] == "Columns: text, category"


def test_rows_looked_at_a_few_at_a_time_are_divided_alike(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    groups = np.minimum(np.arange(900), rng.integers(0, 1500, 900)).astype(np.int32)
    groups = groups[groups]
    strata = rng.integers(-1, 12, 900).astype(np.int16)
    times = rng.integers(0, 300, 900).astype(np.float64)
    divided, timed = split_groups(groups, strata, (8, 1, 1), 5), split_by_time(times, groups, (8, 1, 1))
    rows = [{"text": f"t{number}", "label": f"l{number % 5}" if number % 7 else None} for number in range(300)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ["--ratio", "0.5", "0.5", "--stratify", "label"]
    table = run("split", capsys, tmp_path / "a", file, flags=flags).report["tables"][1]
    for name in ("splits.AT_ONCE", "groups.AT_ONCE", "verbs.split.AT_ONCE", "labels.AT_ONCE"):
        monkeypatch.setattr(f"luthier.prepare.{name}", 41)
    assert np.array_equal(split_groups(groups, strata, (8, 1, 1), 5), divided)
    assert np.array_equal(split_by_time(times, groups, (8, 1, 1)), timed)
    assert run("split", capsys, tmp_path / "b", file, flags=flags).report["tables"][1] == table
    assert {row["label"]: row["train"] + row["validation"] for row in table["rows"]} == {
        **{f"l{label}": sum(row["label"] == f"l{label}" for row in rows) for label in range(5)},
        "(none)": sum(row["label"] is None for row in rows),
    }
