"""Tags that break their scheme: told by inspect, left out by clean on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from workshop import run, write_rows

from luthier import prepare


def rows(*tags: str) -> list[dict[str, Any]]:
    return [{"tokens": [f"w{n}" for n in range(len(some.split()))], "tags": some.split()} for some in tags]


@pytest.mark.parametrize(
    ("tags", "torn"),
    [
        (("B-x M-x E-x", "B-x O", "O S-y", "B-x M-y E-y", "M-x E-x"), [1, 3, 4]),
        (("B-x I-x E-x", "B-x I-x", "S-x"), [1]),
        (("B-x L-x", "U-x", "B-x U-x"), [2]),
        (("B-x I-x O", "B-x O", "O I-x", "B-x I-y"), [2, 3]),
        (("I-x O I-x B-x", "I-y I-x"), []),  # IOB1: B parts neighbours, I begins
        (("I-x O", "O I-x"), []),
        (("NOUN VERB", "I X"), []),
    ],
    ids=["bmes", "bioes", "bilou", "bio", "iob1", "io", "classes"],
)
def test_torn_rows_are_told_and_left_out(tags: tuple[str, ...], torn: list[int], tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "in.jsonl", rows(*tags))
    told = run("inspect", capsys, tmp_path / "look", file, flags=[]).report
    assert told["counts"].get("torn_tags", 0) == len(torn)
    assert [shown["line"] - 1 for shown in told["examples"].get("torn_tags", [])] == torn
    assert any(f"torn tags: {len(torn)} rows whose tags break" in note for note in told["notes"]) == bool(torn)
    assert "torn open" not in told["examples"] and "torn closed" not in told["examples"]
    kept = run("clean", capsys, tmp_path / "kept", file, flags=[])
    assert kept.rows == rows(*tags), "rows are left out when that is asked for"
    done = run("clean", capsys, tmp_path / "out", file, flags=["--torn_tags", "drop"])
    assert done.rows == [row for number, row in enumerate(rows(*tags)) if number not in torn]
    assert done.report["counts"].get("torn_tags", 0) == len(torn)


def test_a_tear_is_shown(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "in.jsonl", rows("B-x M-x E-x S-y", "O B-x O O"))
    (shown,) = run("inspect", capsys, tmp_path / "out", file, flags=[]).report["examples"]["torn_tags"]
    assert (shown["line"], shown["token"], shown["tags"]) == (2, 2, "B-x O O")


def test_real_tags_are_whole(test_data: Path) -> None:
    for name in ("resume-ner-zh/dev.char.bmes", "wnut17/emerging.dev.conll"):
        done = prepare.inspect(test_data / name)
        assert "torn_tags" not in done.report.tally.counts


def test_torn_rows_are_left_out_behind_another_step(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "in.jsonl", [*rows("B-x E-x", "B-x O", "M-x"), *rows("B-x E-x")])
    recipe = tmp_path / "recipe.yaml"
    steps = [{"dedup": {}}, {"clean": {"torn_tags": "drop"}}]
    recipe.write_text(json.dumps({"inputs": [str(file)], "steps": steps, "output": str(tmp_path / "out.jsonl")}))
    prepare.run(recipe)
    left = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert left == rows("B-x E-x")
