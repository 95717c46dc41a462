"""Real files as they lie about: odd encodings, arrays with the wrong name, every file of a JSON test suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from workshop import run

from luthier import prepare
from luthier.base.errors import DataError


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_json_that_must_be_refused(test_data: Path, tmp_path: Path) -> None:
    files = sorted((test_data / "jsontestsuite" / "test_parsing").glob("n_*.json"))
    assert len(files) == 188
    for path in files:
        with pytest.raises(DataError):
            prepare.dedup(path, output=tmp_path / "out.jsonl", bad_rows="strict")
        assert not (tmp_path / "out.jsonl").exists()


def test_json_that_must_be_read(test_data: Path, tmp_path: Path) -> None:
    files = sorted((test_data / "jsontestsuite" / "test_parsing").glob("y_*.json"))
    assert len(files) == 95
    for path in files:
        value = json.loads(path.read_bytes())
        values = value if isinstance(value, list) else [value]
        # D2: a NUL makes a row unusable; what is no object is valid JSON but no row
        nul = "\\u0000" in path.read_text(encoding="utf-8")
        rows = [value for value in values if isinstance(value, dict) and not nul]
        try:
            done = prepare.dedup(path, output=tmp_path / "out.jsonl")
        except DataError as error:
            assert not rows and error.code == ("no_rows" if values else "empty_file"), path.name
            assert not values or "must be a JSON object" in str(error) or (nul and "NUL" in str(error)), str(error)
        else:
            assert read(tmp_path / "out.jsonl") == rows, path.name
            assert done.facts.rejected == (
                {"not_an_object": len(values) - len(rows)} if len(values) > len(rows) else {}
            )


def test_json_that_may_be_either_does_not_crash(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "jsontestsuite"
    for path in [*folder.glob("test_parsing/i_*.json"), *folder.glob("test_transform/*.json")]:
        try:
            prepare.clean(path, output=tmp_path / "out.jsonl")
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("name", "lines", "encoding", "start"),
    [
        ("arabic-1", 3, "cp1256", "بالموازاة مع ذلك"),
        ("chinese", 8, "big5", "維基大典（Wikipedia）者，網路為礎"),
        ("english.bom", 28, "utf-8", "1"),
        ("french-1", 51, "cp1252", "JEAN-BAPTISTE POQUELIN MOLIÈRE"),
        ("greek", 1, "cp1253", "Η ελληνική αποτελεί"),
        ("hebrew-2", 1, "cp1255", "אין כמעט ניבים"),
        ("korean", 1, "cp949", "역사적 예수 연구자들은"),
        ("russian", 3, "mac_cyrillic", "В гимназии он не был"),
        ("russian-3", 4, "utf-8", "Москва́"),
        ("turkish", 28, "cp1254", "İstanbul, Türkiye'nin en kalabalık"),
    ],
)
def test_texts_in_many_encodings(
    test_data: Path, name: str, lines: int, encoding: str, start: str, tmp_path: Path, capsys: Any
) -> None:
    done = run("clean", capsys, tmp_path / "out", test_data / "charset-samples" / f"sample-{name}.txt", flags=[])
    assert done.code == 0, done.said
    assert len(done.rows) == lines and done.rows[0]["text"].startswith(start)
    assert "\ufffd" not in json.dumps(done.rows, ensure_ascii=False)
    said = done.report["faulty"]["examples"].get("not_utf8", [{"message": "utf-8"}])[0]["message"]
    assert encoding in said


def test_every_encoding_sample_is_decoded(test_data: Path, tmp_path: Path) -> None:
    files = sorted((test_data / "charset-samples").glob("*.txt"))
    assert len(files) == 18
    for path in files:
        done = prepare.clean(path, output=tmp_path / "out.jsonl", damaged="drop")
        assert done.facts.rejected == {} and done.report.summary["removed"] == 0, path.name
    # one text in two encodings gives the same rows
    for one, other in (("arabic-1", "arabic"), ("french-1", "french"), ("russian", "russian-2")):
        for name in (one, other):
            prepare.clean(test_data / "charset-samples" / f"sample-{name}.txt", output=tmp_path / f"{name}.jsonl")
        assert (tmp_path / f"{one}.jsonl").read_bytes() == (tmp_path / f"{other}.jsonl").read_bytes(), one


def test_an_array_that_is_named_jsonl(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "data-juicer-demos"
    arrays = [path for path in sorted(folder.rglob("*.jsonl")) if path.read_bytes().lstrip()[:1] == b"["]
    assert arrays
    for path in arrays:
        prepare.dedup(path, output=tmp_path / "out.jsonl")
        kept = {json.dumps(row, sort_keys=True) for row in json.loads(path.read_bytes())}
        assert {json.dumps(row, sort_keys=True) for row in read(tmp_path / "out.jsonl")} == kept
    for path in sorted({*folder.rglob("*.jsonl"), *folder.rglob("*.parquet")}):
        assert prepare.inspect(path).facts.rejected == {}, path.name


def test_medical_dialogues_become_chats(test_data: Path, tmp_path: Path) -> None:
    (source,) = (test_data / "zh-medical-dialogue-gb").glob("*.csv")
    steps = [{"dedup": {"exact": True}}, {"clean": {"width": "chinese", "mask": ["all"]}}, {"convert": {}}]
    recipe = {"inputs": [str(source)], "steps": steps, "output": str(tmp_path / "sft.jsonl")}
    recipe["report"] = str(tmp_path / "report.json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    prepare.run(tmp_path / "recipe.yaml")
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["steps"][0]["summary"] == {"duplicates": 378, "groups": 378}
    rows = read(tmp_path / "sft.jsonl")
    assert len(rows) == 7644 - 378
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows)
    assert rows[0]["messages"][0]["content"].startswith("我有高血压这两天女婿来的时候")
    assert prepare.inspect(tmp_path / "sft.jsonl", bad_rows="strict").facts.faulty.counts == {}
