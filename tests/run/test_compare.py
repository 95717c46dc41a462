"""Runs side by side, from directories written here by hand: what differs, what is best, what must not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.base.errors import ConfigError
from luthier.base.rundir import Lock
from luthier.run.compare import compare, compare_evaluations
from luthier.run.comparison import html, markdown, tables, to_json, write
from luthier.run.seen import Seen, found, names, read_evaluation, read_run


def make_run(folder: Path, *, losses: list[float], evals: list[float], **more: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {
        "objective": {"type": "sft"}, "model": {"path": "nano"}, "seed": 42, "output_dir": str(folder.parent),
        "optim": {"learning_rate": more.get("rate", 1e-4)}, "data": {"datasets": ["a.jsonl"]},
    }  # fmt: skip
    settings |= more.get("settings", {})
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    rows: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, 1):
        speed = {"tokens_per_second": 1000.0 + step, "memory_gib": 1.5}
        rows.append({"step": step, "loss": loss, "tokens": 100 * step, **speed})
    for number, loss in enumerate(evals, 1):
        rows.append({"step": 2 * number, "eval_loss": loss, "eval_token_accuracy": 1 - loss / 10, "eval_seconds": 1.0})
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    told = [
        {"event": "started", "steps": 4, "trained_parameters": 305_152},
        *more.get("events", [{"event": "finished", "reason": "finished"}]),
    ]
    lines = [json.dumps({"created_at": 1000 + 60 * number, "data": data}) for number, data in enumerate(told)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    sets = [
        {"name": name, "use": use, "kept": 10, "tokens": 500} for name, use in more.get("sets", [("a.jsonl", "train")])
    ]
    (folder / "data_report.json").write_text(json.dumps({"sets": sets, "max_length": 2048}))
    (folder / "env.json").write_text(json.dumps({"luthier": "0.1", "packages": {"torch": "2.13"}, "device": "cpu"}))
    return folder


def read(*paths: Path) -> list[Seen]:
    return [read_run(path, name) for path, name in zip(paths, names(paths), strict=True)]


def test_only_what_differs_is_told_and_the_best_stands_first(tmp_path: Path) -> None:
    one = make_run(tmp_path / "runs" / "v1-20260101-120000", losses=[3.0, 2.5, 2.0, 1.9], evals=[2.4, 2.2])
    two = make_run(tmp_path / "runs" / "v2-20260101-120000", losses=[3.0, 2.0, 1.5, 1.2], evals=[2.0, 2.3], rate=5e-4)
    result = compare(read(one, two), None)
    assert result.by == "eval_loss" and result.names == ("v2-20260101-120000", "v1-20260101-120000")
    assert result.settings == [
        {"Setting": "optim.learning_rate", "v2-20260101-120000": "0.0005", "v1-20260101-120000": "0.0001"}
    ]
    first = result.overview[0]
    assert (first["state"], first["steps"], first["loss"]) == ("finished", "4/4", 1.2)
    assert (first["eval_loss"], first["at step"], first["tokens"], first["time"]) == (2.0, 2, 400, "1:00")
    assert (first["trained"], first["tokens/s"], first["GiB"]) == ("305k", 1003, 1.5)
    assert result.warnings == [] and not result.data
    assert compare(read(one, two), "eval_token_accuracy").names[0] == "v2-20260101-120000"
    assert compare(read(one, two), "tokens_per_second").by == "tokens_per_second"
    assert result.pictures["curves.png"].startswith(b"\x89PNG")


def test_what_keeps_numbers_apart_is_said(tmp_path: Path) -> None:
    one = make_run(
        tmp_path / "a" / "v1", losses=[2.0], evals=[1.0], sets=[("a.jsonl", "train"), ("held.jsonl", "validation")]
    )
    settings = {"objective": {"type": "pretrain"}, "model": {"path": "other"}, "seed": 7}
    sets = [("b.jsonl", "train"), ("other.jsonl", "validation")]
    two = make_run(tmp_path / "b" / "v1", losses=[2.0], evals=[1.0], settings=settings, sets=sets, events=[])
    for path, text in ((one, "one"), (two, "two")):
        saved = path / "checkpoints" / "step-00000001"
        saved.mkdir(parents=True)
        (saved / "tokenizer.json").write_text(text)
        (path / "checkpoints" / "LATEST").write_text(saved.name)
    told = " ".join(compare(read(one, two), None).warnings)
    for words in (
        "b/v1 (stopped)", "learn different things", "different models", "tokenizers differ",
        "trained on different data", "judged on different data", "seeds differ",
    ):  # fmt: skip
        assert words in told
    assert {str(row["Data"]) for row in compare(read(one, two), None).data} == {
        "train a.jsonl", "train b.jsonl", "validation held.jsonl", "validation other.jsonl"
    }  # fmt: skip


def test_a_run_that_is_still_trained_is_compared_as_it_stands(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "v1-20260101-120000", losses=[2.0, 1.0], evals=[])
    held = Lock(tmp_path / "runs" / ".lock")
    running = make_run(tmp_path / "runs" / "v2-20260101-120000", losses=[2.0], evals=[], events=[])
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # it is being written at this moment
    runs = read(*found([str(tmp_path / "runs")]))
    assert [run.state for run in runs] == ["finished", "preparing"]
    assert "v2-20260101-120000 (preparing)" in compare(runs, None).warnings[0]
    held.release()
    assert read(running)[0].state == "failed"


def test_runs_are_found_by_name_pattern_and_folder(tmp_path: Path) -> None:
    for name in ("a/v1-20260101-120000", "a/v2-20260101-120000", "b/v1-20260101-120000"):
        make_run(tmp_path / name, losses=[1.0], evals=[])
    assert len(found([str(tmp_path)])) == 3
    assert len(found([str(tmp_path / "a")])) == 2
    assert len(found([str(tmp_path / "*" / "v1-*")])) == 2
    assert len(found([str(tmp_path / "a"), str(tmp_path / "a" / "v1-20260101-120000")])) == 2
    assert names(found([str(tmp_path / "*" / "v1-*")])) == ["a/v1-20260101-120000", "b/v1-20260101-120000"]
    for wrong in (tmp_path / "nowhere", tmp_path / "c*"):
        with pytest.raises(ConfigError, match="nothing is there"):
            found([str(wrong)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="neither a run nor results"):
        found([str(tmp_path / "empty")])


def test_broken_files_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "v1", losses=[1.0], evals=[])
    (run / "data_report.json").write_text("{")
    with pytest.raises(ConfigError, match=r"data_report\.json: cannot be read"):
        read(run)
    (run / "data_report.json").unlink()
    (run / "env.json").unlink()
    assert read(run)[0].environment == {}
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read(run)


def test_an_unknown_metric_is_refused_with_a_hint(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, losses=[1.0], evals=[1.0]) for name in ("a", "b")]
    with pytest.raises(ConfigError, match="Did you mean eval_loss"):
        compare(read(*runs), "evalloss")


def test_everything_is_written_down(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, losses=[1.0, rate], evals=[rate], rate=rate)
        for name, rate in (("a", 0.5), ("b", 0.25))
    ]
    result = compare(read(*runs), None)
    written = {path.name for path in write(result, tmp_path / "out")}
    assert written == {"comparison.md", "comparison.html", "comparison.json"}
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert told["names"] == ["b", "a"] and told == json.loads(json.dumps(to_json(result)))
    text = markdown(result)
    assert "| optim.learning_rate | 0.25 | 0.5 |" in text and "![curves](plots/curves.png)" in text
    assert (tmp_path / "out" / "plots" / "curves.png").exists()
    page = html(result)
    assert "data:image/png;base64," in page and "default-src 'none'" in page and "://" not in page
    assert list(tables(result)) == ["Runs, best first by eval_loss", "Settings that differ", "Scores"]


def make_evaluation(folder: Path, rights: list[bool]) -> Path:
    items = folder / "items" / "quiz"
    items.mkdir(parents=True)
    lines = [
        {"key": str(n), "asked": f"h{n}", "question": "?", "prediction": "A" if right else "B", "reference": "A",
         "rates": {"AverageAccuracy": [float(right), 1.0]}}
        for n, right in enumerate(rights)
    ]  # fmt: skip
    (items / "test.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    score = {
        "dataset": "quiz",
        "subset": "test",
        "metric": "AverageAccuracy",
        "num": len(rights),
        "score": sum(rights) / len(rights),
    }
    (folder / "report.json").write_text(json.dumps({"model": folder.name, "scores": [score]}))
    return folder


def test_evaluations_are_compared_question_by_question(tmp_path: Path) -> None:
    paths = [
        make_evaluation(tmp_path / "base", [True] * 10 + [False] * 30),
        make_evaluation(tmp_path / "tuned", [True] * 30 + [False] * 10),
    ]
    result = compare_evaluations([read_evaluation(path, path.name) for path in paths], None)
    assert result.names == ("tuned", "base") and result.by == "quiz test AverageAccuracy"
    (change,) = result.changes["base -> tuned"]
    assert (change.num, change.wins, change.losses, change.difference) == (40, 20, 0, 0.5)
    assert change.sure and change.low > 0 and change.high > 0.6
    assert result.scores == [{"Score": "quiz test AverageAccuracy", "tuned": 0.75, "base": 0.25}]
    with pytest.raises(ConfigError, match="no evaluation has the metric"):
        compare_evaluations([read_evaluation(path, path.name) for path in paths], "F1")
    (tmp_path / "tuned" / "items" / "quiz" / "test.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="holds no results"):
        read_evaluation(tmp_path / "tuned", "tuned")
