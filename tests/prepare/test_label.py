"""Labels from people, endpoints and models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from workshop import run, write_rows

from luthier import prepare

ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}


def _result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x1", "from_name": name, "to_name": "text", "type": kind, "origin": "manual", "value": value}


def _annotation(who: Any, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": 1, "completed_by": who, "result": list(results), "was_cancelled": False, "lead_time": 3.2, **more}


def _task(data: dict[str, Any], *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": 7, "data": data, "annotations": list(annotations), "predictions": [], "meta": {}, "project": 1}


def _choice(label: str) -> dict[str, Any]:
    return _result("sentiment", "choices", {"choices": [label]})


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A pretty-printed export with every kind of result."""
    span = {"start": 0, "end": 3, "text": "Ada", "labels": ["PER"]}
    relation = {"type": "relation", "from_id": "x1", "to_id": "x2", "direction": "right"}
    tasks = [
        _task({"text": "great"}, *[_annotation(n, _choice(label)) for n, label in enumerate(["pos", "pos", "neg"])]),
        _task({"text": "poor"}, *[_annotation(n, _choice("neg")) for n in range(3)]),
        _task({"text": "so so"}, _annotation(0, _choice("neg")), _annotation(1, _choice("pos"))),
        _task({"text": "skipped"}, _annotation(0, was_cancelled=True)),
        _task(
            {"text": "Ada wrote"},
            _annotation({"id": 5, "email": "a@b.c"}, _result("ner", "labels", span), relation),
        ),
        _task(
            {"prompt": "p", "a": "first", "b": "second"},
            _annotation(
                1,
                _result("pref", "pairwise", {"selected": "right"}),
                _result("stars", "rating", {"rating": 4}),
                _result("why", "textarea", {"text": ["clearer"]}),
                _result("topics", "choices", {"choices": ["x", "y"]}),
                _result("box", "rectanglelabels", {"x": 1, "y": 2, "rectanglelabels": ["car"]}),
            ),
        ),
        _task({"text": "truth"}, _annotation(0, _choice("neg")), _annotation(1, _choice("pos"), ground_truth=True)),
    ]
    path = tmp_path / "project-1.json"
    path.write_text(json.dumps(tasks, indent=2), encoding="utf-8")
    return path


def test_an_export_of_label_studio_becomes_rows(export: Path, tmp_path: Path, capsys: Any) -> None:
    done = run("label", capsys, tmp_path / "out", export, flags=["--method", "import"])
    assert done.code == 0, done.said
    assert done.rows == [
        {"text": "great", "sentiment": "pos"},
        {"text": "poor", "sentiment": "neg"},
        {"text": "Ada wrote", "ner": [{"start": 0, "end": 3, "label": "PER", "text": "Ada"}]},
        {
            **{"prompt": "p", "a": "first", "b": "second", "pref": "right", "stars": 4, "why": "clearer"},
            **{"topics": ["x", "y"], "chosen": "second", "rejected": "first"},
        },
        {"text": "truth", "sentiment": "pos"},
    ]
    counts = done.report["counts"]
    assert (counts["no_majority"], counts["not_annotated"]) == (1, 1)
    assert "relation (1), rectanglelabels (1)" in done.report["notes"][-1]
    assert "alpha of sentiment" in done.report["summary"]
    every = run("label", capsys, tmp_path / "all", export, flags=["--method", "import", "--resolve", "all"])
    assert [row["annotator"] for row in every.rows[:3]] == ["0", "1", "2"] and len(every.rows) == 12


def test_rows_go_to_label_studio_and_come_back(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": "good <one>", "label": "pos"}, {"text": "bad", "label": "neg"}, {"text": "new"}]
    tasks, interface = tmp_path / "tasks.json", tmp_path / "form.xml"
    flags = ["--method", "export", "--tasks", str(tasks), "--interface", str(interface)]
    done = run("label", capsys, tmp_path / "a", write_rows(tmp_path / "f.jsonl", rows), flags=flags)
    made = json.loads(tasks.read_text(encoding="utf-8"))
    assert made == done.rows and [task["data"] for task in made] == rows
    assert made[0]["predictions"][0]["result"][0]["value"] == {"choices": ["pos"]} and "predictions" not in made[2]
    root = ElementTree.fromstring(interface.read_text(encoding="utf-8"))
    assert [choice.get("value") for choice in root.iter("Choice")] == ["neg", "pos"]
    assert [text.get("value") for text in root.iter("Text")] == ["$text"]
    for task in made:  # an annotator accepts what is there, and labels the last one
        result = task["predictions"][0]["result"] if "predictions" in task else [_choice("pos")]
        task["annotations"] = [_annotation(1, *[{**one, "from_name": "label"} for one in result])]
    (tmp_path / "back.json").write_text(json.dumps(made), encoding="utf-8")
    back = run("label", capsys, tmp_path / "b", tmp_path / "back.json", flags=["--method", "import"])
    assert [row["label"] for row in back.rows] == ["pos", "neg", "pos"]


def test_spans_and_pairs_have_forms_of_their_own(tmp_path: Path, capsys: Any) -> None:
    row = {"text": "Ada wrote", "spans": [{"start": 0, "end": 3, "label": "PER"}], "b": "x"}
    file = write_rows(tmp_path / "f.jsonl", [row])
    flags = ["--method", "export", "--form", "spans", "--label", "spans", "--labels", "PER", "LOC", "--text", "text"]
    value = run("label", capsys, tmp_path / "a", file, flags=flags).rows[0]["predictions"][0]["result"][0]["value"]
    assert value == {"start": 0, "end": 3, "text": "Ada", "labels": ["PER"]}
    pair = run(
        "label", capsys, tmp_path / "b", file,
        flags=["--method", "export", "--form", "pairwise", "--text", "text", "--other", "b"],
    )  # fmt: skip
    assert '<Pairwise name="preferred" toName="text,other"/>' in pair.report["notes"][0]


def test_three_columns_of_annotators(tmp_path: Path, capsys: Any) -> None:
    answers = [("a", "a", "b"), ("b", "b", "b"), ("a", "b", None), ("a", "a", "a"), (None, None, None)]
    rows = [{"text": str(n), **dict(zip("xyz", answer, strict=True))} for n, answer in enumerate(answers)]
    flags = ["--method", "agreement", "--annotators", "x", "y", "z"]
    done = run("label", capsys, tmp_path / "a", write_rows(tmp_path / "f.jsonl", rows), flags=flags)
    assert [(row["label"], row["agreement"]) for row in done.rows] == [("a", 0.6667), ("b", 1.0), ("a", 1.0)]
    assert done.report["counts"] == {"no_majority": 1, "nothing_said": 1}
    people = {row["annotator"]: row["answers"] for row in done.report["tables"][2]["rows"]}
    assert people == {"x": 4, "y": 4, "z": 3}


def test_agreement_of_people_on_pairs(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    flags = ["--method", "agreement", "--annotators", "annotator1", "annotator2", "annotator3"]
    done = run("label", capsys, tmp_path / "a", test_data / "pandalm/testset-v1.json", flags=flags)
    whole = done.report["tables"][0]["rows"][0]
    assert whole["items"] == 999 and whole["Fleiss' kappa (items that all judged)"] == pytest.approx(0.8, abs=0.1)
    assert len(done.rows) == 999 - done.report["counts"].get("no_majority", 0)


def _guideline(tmp_path: Path) -> str:
    path = tmp_path / "guideline.md"
    path.write_text("spam: advertises something.\nham: everything else.\n", encoding="utf-8")
    return str(path)


def test_an_endpoint_labels_by_the_guideline(tmp_path: Path) -> None:
    asked: list[Any] = []

    def ask(chats: Sequence[Sequence[Mapping[str, str]]], schema: Mapping[str, Any]) -> list[str]:
        asked.extend(chats)
        assert schema["properties"]["label"] == {"type": "string", "enum": ["spam", "ham"]}
        told = {"win now": '{"label": "spam", "confidence": 0.9}', "maybe": '{"label": "ham", "confidence": 0.4}'}
        return [told.get(chat[1]["content"], "") for chat in chats]

    rows = [{"text": "win now"}, {"text": "maybe"}, {"text": "lost"}, {"text": "had", "label": "ham"}, {"text": " "}]
    file, out = write_rows(tmp_path / "f.jsonl", rows), tmp_path / "o.jsonl"
    settings: Any = {"labels": ("spam", "ham"), "guideline": _guideline(tmp_path), "endpoint": ENDPOINT}
    done = prepare.label(file, output=out, ask=ask, min_confidence=0.5, **settings)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert made == [{"text": "win now", "label": "spam", "confidence": 0.9}, {"text": "had", "label": "ham"}]
    assert dict(done.report.tally.counts) == {"labelled": 1, "unsure": 1, "no_answer": 1, "no_text": 1}
    assert len(asked) == 3 and "advertises something" in asked[0][0]["content"]
    assert any("1 row has a value in the column label already" in note for note in done.report.notes)
    kept = prepare.label(file, output=out, ask=ask, unsure="keep", relabel=True, **settings)
    assert len(out.read_text().splitlines()) == 5 and kept.report.summary["labelled"] == 2


def test_votes_and_answers_of_any_schema(tmp_path: Path) -> None:
    answers = iter(["a", "b", "b", "b", "b", "b"])

    def vote(chats: Sequence[Any], schema: Any) -> list[str]:
        return [json.dumps({"label": next(answers), "confidence": 1}) for _ in chats]

    file, out = write_rows(tmp_path / "f.jsonl", [{"text": "x"}, {"text": "y"}]), tmp_path / "o.jsonl"
    settings: Any = {"guideline": _guideline(tmp_path), "endpoint": {**ENDPOINT, "temperature": 1.0}}
    prepare.label(file, output=out, ask=vote, labels=("a", "b"), votes=3, **settings)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["label"], row["confidence"]) for row in made] == [("b", 0.6667), ("b", 1.0)]
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "object", "properties": {"topic": {"type": "string"}}}')
    free = prepare.label(
        file, output=out, ask=lambda chats, schema: ['{"topic": "t"}'] * len(chats), answer_schema=str(schema),
        **settings,
    )  # fmt: skip
    assert json.loads(out.read_text().splitlines()[0]) == {"text": "x", "topic": "t"}
    assert free.report.summary["labelled"] == 2


def test_pseudo_labels_above_a_threshold(tmp_path: Path) -> None:
    def choose(prompts: Sequence[str], options: Sequence[str]) -> Any:
        assert "Text: sure" in prompts[0] and options == ("spam", "ham")
        return np.log([[0.95, 0.05] if "sure" in prompt else [0.4, 0.6] for prompt in prompts])

    file, out = write_rows(tmp_path / "f.jsonl", [{"text": "sure"}, {"text": "hm"}]), tmp_path / "o.jsonl"
    settings: Any = {"labels": ("spam", "ham"), "guideline": _guideline(tmp_path), "model": {"path": "any"}}
    prepare.label(file, output=out, method="pseudo", choose=choose, min_confidence=0.9, **settings)
    assert out.read_text().splitlines() == ['{"text":"sure","label":"spam","confidence":0.95}']


def test_pseudo_labels_from_the_bundled_model(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "f.jsonl", [{"text": "win now"}, {"text": "see you"}])
    flags = ["--method", "pseudo", "--labels", "spam", "ham", "--guideline", _guideline(tmp_path)]
    done = run("label", capsys, tmp_path / "out", file, flags=[*flags, "--model", "nano", "--device", "cpu"])
    assert done.code == 0, done.said
    assert all(row["label"] in ("spam", "ham") and 0.5 <= row["confidence"] <= 1 for row in done.rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "an endpoint is needed"),
        (["--method", "pseudo", "--labels", "a", "b"], "need a model"),
        (["--base_url", "http://x/v1", "--endpoint.model", "m"], "two labels or more"),
        (["--base_url", "http://x/v1", "--endpoint.model", "m", "--labels", "a", "b"], "guideline is needed"),
        (["--method", "agreement", "--annotators", "a"], "two columns"),
        (["--method", "export", "--form", "pairwise"], "both texts"),
    ],
)
def test_refusals(flags: list[str], message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    done = run("label", capsys, tmp_path / "out", write_rows(tmp_path / "f.jsonl", [{"text": "x"}]), flags=flags)
    assert done.code == 2 and message in done.error["what"], done.said
