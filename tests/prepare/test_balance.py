"""Balancing classes: counts before and after, weights, and what is never lost."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
from workshop import Done, run, write_rows


def _rows(**counts: int) -> list[dict[str, Any]]:
    return [{"text": f"{name} {number}", "label": name} for name, n in counts.items() for number in range(n)]


def _counts(done: Done) -> dict[str, int]:
    return dict(collections.Counter(row["label"] for row in done.rows))


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Forty, ten and four rows of three classes."""
    return write_rows(tmp_path / "uneven.jsonl", _rows(a=40, b=10, c=4))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--method", "oversample"], {"a": 40, "b": 40, "c": 40}),
        (["--method", "undersample"], {"a": 4, "b": 4, "c": 4}),
        (["--method", "oversample", "--target", "20"], {"a": 40, "b": 20, "c": 20}),
        (["--method", "undersample", "--target", "8"], {"a": 8, "b": 8, "c": 4}),
        (["--method", "oversample", "--max_repeats", "3"], {"a": 40, "b": 30, "c": 12}),
        (["--method", "undersample", "--ratio", '{"a": 2, "b": 1, "c": 1}'], {"a": 8, "b": 4, "c": 4}),
        (["--method", "temperature", "--temperature", "1", "--rows", "27"], {"a": 20, "b": 5, "c": 2}),
    ],
)
def test_counts(flags: list[str], expected: dict[str, int], uneven: Path, tmp_path: Path, capsys: Any) -> None:
    done = run("balance", capsys, tmp_path / "out", uneven, flags=flags)
    assert done.code == 0, done.said
    assert _counts(done) == expected
    assert {row["label"]: row["after"] for row in done.report["tables"][0]["rows"]} == expected


def test_oversampling_repeats_every_row_before_any_comes_a_third_time(
    uneven: Path, tmp_path: Path, capsys: Any
) -> None:
    done = run("balance", capsys, tmp_path / "out", uneven, flags=["--target", "17"])
    times = collections.Counter(row["text"] for row in done.rows if row["label"] == "b")
    assert len(times) == 10 and set(times.values()) == {1, 2}


def test_order_without_shuffling_is_the_input_s(uneven: Path, tmp_path: Path, capsys: Any) -> None:
    still = run("balance", capsys, tmp_path / "a", uneven, flags=["--shuffle", "false", "--method", "undersample"])
    assert [row["label"] for row in still.rows] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    mixed = run("balance", capsys, tmp_path / "b", uneven, flags=["--method", "undersample"])
    assert sorted(map(str, mixed.rows)) == sorted(map(str, still.rows)) and mixed.rows != still.rows
    other = run("balance", capsys, tmp_path / "c", uneven, flags=["--method", "undersample", "--seed", "1"])
    assert sorted(map(str, other.rows)) != sorted(map(str, still.rows))


def test_weights_multiply_what_is_there_and_training_reads_them(tmp_path: Path, capsys: Any) -> None:
    from luthier.base.records import Where
    from luthier.data.formats import read_record

    rows = [{"text": f"t{n}", "kind": "x" if n else "y", **({"weight": 0.5} if n == 1 else {})} for n in range(4)]
    file = write_rows(tmp_path / "rows.jsonl", [*rows, {"text": "none"}])
    done = run("balance", capsys, tmp_path / "out", file, flags=["--by", "kind", "--method", "weights"])
    weights = [row.get("weight") for row in done.rows]
    assert weights == pytest.approx([2.0, 0.333333, 0.666667, 0.666667, None])
    record = read_record(done.rows[0], Where("f", 1))
    assert record.weight == 2.0


def test_rows_without_a_label_are_kept_or_counted(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [*_rows(a=4, b=2), {"text": "u"}, {"text": "v", "label": ""}])
    kept = run("balance", capsys, tmp_path / "a", file, flags=["--method", "undersample"])
    assert sum("label" not in row or not row["label"] for row in kept.rows) == 2
    dropped = run("balance", capsys, tmp_path / "b", file, flags=["--method", "undersample", "--unlabelled", "drop"])
    assert len(dropped.rows) == 4
    assert dropped.report["counts"] == {"undersampled": 2, "unlabelled": 2}


def test_lists_and_numbers_are_labels_too(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": str(n), "meta": {"tags": [n % 2, "x"]}} for n in range(5)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    done = run("balance", capsys, tmp_path / "out", file, flags=["--by", "meta.tags", "--method", "undersample"])
    assert [row["label"] for row in done.report["tables"][0]["rows"]] == ['[0,"x"]', '[1,"x"]']
    assert len(done.rows) == 4


def test_sources_are_balanced_by_temperature(tmp_path: Path, capsys: Any) -> None:
    one = write_rows(tmp_path / "one.jsonl", [{"text": f"one {n}"} for n in range(100)])
    two = write_rows(tmp_path / "two.jsonl", [{"text": f"two {n}"} for n in range(4)])
    flags = ["--by_input", "--method", "temperature", "--temperature", "2"]
    done = run("balance", capsys, tmp_path / "out", one, two, flags=flags)
    small = sum(row["text"].startswith("two") for row in done.rows)
    assert (len(done.rows), small) == (104, 17)  # 104 * 2 / (10 + 2)
    assert len({row["text"] for row in done.rows if row["text"].startswith("two")}) == 4


@pytest.mark.parametrize(
    ("flags", "code", "exit_code"),
    [
        (["--by", "nothing"], "no_label", 3),
        (["--ratio", '{"a": 1}'], "bad_config", 2),
        (["--ratio", '{"a": 0, "b": 1, "c": 1}'], "bad_config", 2),
        (["--method", "weights", "--target", "3"], "bad_config", 2),
    ],
)
def test_refusals(flags: list[str], code: str, exit_code: int, uneven: Path, tmp_path: Path, capsys: Any) -> None:
    done = run("balance", capsys, tmp_path / "out", uneven, flags=flags)
    assert (done.code, done.error["code"]) == (exit_code, code)


def test_the_classes_of_a_real_collection(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    messages = tmp_path / "sms.tsv"
    messages.write_bytes((test_data / "sms-spam/SMSSpamCollection").read_bytes())
    done = run("balance", capsys, tmp_path / "out", messages, flags=["--method", "oversample"])
    assert done.code == 0, done.said
    assert set(_counts(done)) == {"ham", "spam"} and len(set(_counts(done).values())) == 1
    before = {row["label"]: row["before"] for row in done.report["tables"][0]["rows"]}
    assert sum(before.values()) == done.report["rows"]["used"] and before["ham"] > 4000 > 1000 > before["spam"] > 700
    assert sum(done.report["rejected"]["counts"].values()) == len(done.rejected) >= 1  # the broken line
