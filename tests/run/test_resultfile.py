"""A result file that is finished by later commands holds nothing of other models, rows or mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.base.errors import ConfigError
from luthier.data.row import Row
from luthier.run.predict import predict_file
from luthier.run.resultfile import claim, drop_errors, put_in_order, standing


def write(file: Path, *lines: dict[str, Any]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_lines_of_another_model_or_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.jsonl"
    claim(file, {"model": "runs/one", "temperature": 0.0, "system": None})
    claim(file, {"model": "runs/two", "temperature": 0.0, "system": None})  # nothing was answered yet
    write(file, {"index": 0, "response": "yes"})
    claim(file, {"model": "runs/two", "temperature": 0.0, "system": None})
    with pytest.raises(ConfigError) as caught:
        claim(file, {"model": "runs/three", "temperature": 0.5, "system": None})
    told = str(caught.value)
    assert "model was runs/two, now runs/three; temperature was 0.0, now 0.5" in told and "system" not in told
    assert str(file) in told and "--result_path" in told and caught.value.code == "other_results"
    assert read(file) == [{"index": 0, "response": "yes"}]
    file.unlink()
    claim(file, {"model": "runs/three"})


def test_errors_are_tried_again_and_lines_of_rows_that_are_not_there_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write(file, {"index": 2, "error": "no room"}, {"index": 1, "response": "b"})
    assert standing(file, 3) == {1: {"index": 1, "response": "b"}}
    drop_errors(file)
    assert read(file) == [{"index": 1, "response": "b"}]
    with pytest.raises(ConfigError, match="a line for row 1, and there are 1 rows"):
        standing(file, 1)
    write(file, {"index": 1, "response": "b"}, {"index": 0, "response": "a"})
    put_in_order(file)
    assert [line["index"] for line in read(file)] == [0, 1]


def test_a_row_that_was_mended_is_predicted_by_the_same_command(tmp_path: Path) -> None:
    rows, file = tmp_path / "rows.jsonl", tmp_path / "a.jsonl"
    asked: list[str] = []

    def predict(chunk: list[Row]) -> list[dict[str, Any]]:
        texts = [str(row.value.get("text")) for row in chunk]  # pyright: ignore[reportAttributeAccessIssue]
        asked.extend(texts)
        return [{"error": "no text"} if text == "None" else {"label": text.upper()} for text in texts]

    def tick(_: int) -> None: ...

    write(rows, {"text": "a"}, {"txt": "b"}, {"text": "c"})
    assert predict_file(str(rows), file, predict, tick) == f"2 predictions and 1 errors: {file}"
    write(rows, {"text": "a"}, {"text": "b"}, {"text": "c"})
    assert predict_file(str(rows), file, predict, tick) == f"3 predictions and 0 errors, 2 of them from before: {file}"
    assert asked == ["a", "None", "c", "b"]
    assert read(file) == [{"index": n, "label": label} for n, label in enumerate("ABC")]
