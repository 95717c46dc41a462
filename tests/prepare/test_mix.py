"""Mixing sets: shares, replay, order."""

from __future__ import annotations

import collections
import itertools
from pathlib import Path
from typing import Any

import pytest
from workshop import Done, run, write_rows


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Sixty, thirty and two hundred rows."""
    sizes = {"one": 60, "two": 30, "general": 200}
    made = [
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name} {row:03}"} for row in range(n)])
        for name, n in sizes.items()
    ]
    return made[0], made[1], made[2]


def _names(done: Done) -> dict[str, int]:
    assert done.code == 0, done.said
    return dict(collections.Counter(row["text"].split()[0] for row in done.rows))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"one": 60, "two": 30}),
        (["--ratios", "1", "1"], {"one": 30, "two": 30}),
        (["--ratios", "1", "1", "--stop", "all_exhausted"], {"one": 60, "two": 60}),
        (["--ratios", "0.9", "0.1", "--total", "50"], {"one": 45, "two": 5}),
        (["--ratios", "1", "0"], {"one": 60}),
        (["--temperature", "1000000", "--total", "40"], {"one": 20, "two": 20}),
    ],
)
def test_shares(flags: list[str], expected: dict[str, int], sets: Any, tmp_path: Path, capsys: Any) -> None:
    assert _names(run("mix", capsys, tmp_path / "out", sets[0], sets[1], flags=flags)) == expected


def test_replay_comes_on_top_or_within_a_total(sets: Any, tmp_path: Path, capsys: Any) -> None:
    replay = ["--replay", str(sets[2]), "--replay_ratio", "0.25", "--source_column", "source"]
    top = run("mix", capsys, tmp_path / "a", sets[0], flags=replay)
    assert _names(top) == {"one": 60, "general": 20}
    assert {row["source"] for row in top.rows} == {str(sets[0]), str(sets[2])}
    assert [row["use"] for row in top.report["tables"][0]["rows"]] == ["input", "replay"]
    within = run("mix", capsys, tmp_path / "b", sets[0], flags=[*replay, "--total", "40"])
    assert _names(within) == {"one": 30, "general": 10}
    assert len({row["text"] for row in top.rows}) == 80


def test_shares_of_characters(tmp_path: Path, capsys: Any) -> None:
    long = write_rows(tmp_path / "long.jsonl", [{"text": f"long {'x' * 95}"} for _ in range(50)])
    short = write_rows(tmp_path / "short.jsonl", [{"text": "short 4567"} for _ in range(100)])
    flags = ["--ratios", "1", "1", "--unit", "characters"]
    assert _names(run("mix", capsys, tmp_path / "out", long, short, flags=flags)) == {"long": 10, "short": 100}


def test_orders(sets: Any, tmp_path: Path, capsys: Any) -> None:
    plain = run("mix", capsys, tmp_path / "a", sets[0], sets[1], flags=["--order", "inputs"])
    assert [row["text"] for row in plain.rows] == [f"one {n:03}" for n in range(60)] + [
        f"two {n:03}" for n in range(30)
    ]
    woven = run("mix", capsys, tmp_path / "b", sets[0], sets[1], flags=["--order", "interleave"])
    places = [number for number, row in enumerate(woven.rows) if row["text"].startswith("two")]
    assert {b - a for a, b in itertools.pairwise(places)} == {3}
    mixed = run("mix", capsys, tmp_path / "c", sets[0], sets[1], flags=[])
    assert sorted(map(str, mixed.rows)) == sorted(map(str, plain.rows)) and mixed.rows != plain.rows


def test_much_repetition_is_said(sets: Any, tmp_path: Path, capsys: Any) -> None:
    flags = ["--ratios", "1", "9", "--total", "300"]
    done = run("mix", capsys, tmp_path / "out", sets[0], sets[1], flags=flags)
    assert "repeated 9.0 times" in done.report["notes"][0]


def test_refusals(sets: Any, tmp_path: Path, capsys: Any) -> None:
    for flags in (["--ratios", "1"], ["--ratios", "0", "0"], ["--ratios", "1", "1", "--temperature", "2"]):
        done = run("mix", capsys, tmp_path / "out", sets[0], sets[1], flags=flags)
        assert (done.code, done.error["code"]) == (2, "bad_config")
    over = run("mix", capsys, tmp_path, sets[0], flags=["--replay", str(sets[2])], name="general.jsonl")
    assert (over.code, over.error["code"]) == (2, "would_overwrite")
