"""What may stand in the file that predictions are written to, and what must not be touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.data.row import Row
from luthier.run.predict import predict_file
from luthier.run.resultfile import leave_others_alone

ROWS = [{"text": f"text {number}", "label": number % 2} for number in range(3)]


def rows(path: Path, values: list[dict[str, Json]]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def said(chunk: list[Row]) -> list[dict[str, Json]]:
    return [{"text": row.value["text"], "label": "0"} for row in chunk if isinstance(row.value, dict)]


def predicted(data: Path | str, result: Path) -> str:
    leave_others_alone(result, str(data))
    return predict_file(str(data), result, said, lambda _: None)


def test_an_interrupted_file_is_finished(tmp_path: Path) -> None:
    data, result = rows(tmp_path / "data.jsonl", ROWS), tmp_path / "out.jsonl"
    assert predicted(data, result).startswith("3 predictions and 0 errors:")
    whole = result.read_text()
    for left in (whole.splitlines(keepends=True)[0], '{"ind', ""):  # a crash may cut the first line
        result.write_text(left)
        predicted(data, result)
        assert [json.loads(line)["index"] for line in result.read_text().splitlines() if line.endswith("}")][-1] == 2


@pytest.mark.parametrize("count", ["", "#2"])
def test_nothing_is_written_into_the_data(count: str, tmp_path: Path) -> None:
    data = rows(tmp_path / "data.jsonl", ROWS)
    before = data.read_bytes()
    with pytest.raises(ConfigError, match="would write into the input") as caught:
        predicted(f"{data}{count}", data)
    assert caught.value.code == "would_overwrite" and data.read_bytes() == before


@pytest.mark.parametrize("held", ["a,b\n1,2\n", '{"text": "somebody\'s"}\n', '{"index": 0}\n{"text": "x"}\n'])
def test_other_files_are_left_alone(held: str, tmp_path: Path) -> None:
    result = tmp_path / "mine.jsonl"
    result.write_text(held)
    with pytest.raises(ConfigError, match="holds lines that are no results"):
        predicted(rows(tmp_path / "data.jsonl", ROWS), result)
    assert result.read_text() == held


def test_a_device_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        predicted(rows(tmp_path / "data.jsonl", ROWS), Path("/dev/null"))
