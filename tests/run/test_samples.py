"""Orders of samples, joined samples, a teacher asked beforehand, and tags told as places: through whole commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import LINES
from encoders import save_encoder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chats(folder: Path) -> Path:
    """From short to long, in mixed order; the longer the harder, and the heavier."""
    rows = [
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * (1 + n * 5 % 16)}],
            "difficulty": n * 5 % 16,
            "weight": 1.0 + 3.0 * (n % 4 == 0),
        }
        for n in range(16)
    ]
    return write(folder / "rows.jsonl", rows)


@pytest.mark.parametrize("order", ["short_first", "easy_first", "weighted"])
def test_an_order_holds_in_a_run_and_when_it_is_resumed(job: Any, order: str):
    words = {"dataset": chats(job.folder), "order": order, "num_train_epochs": 2, "max_steps": None}
    job.run(**words)
    straight, losses = job.final(), job.losses()
    assert sorted(losses) == list(range(1, 9))
    read = [row["tokens"] for row in job.rows() if "loss" in row]
    each = [after - before for before, after in zip([0, *read], read, strict=False)]
    if order == "weighted":
        assert each[0] != each[4] or losses[1] != losses[5], "drawn anew in the second epoch"
    else:
        assert each[:4] == sorted(each[:4]) and each[4:] != each[:4]
    job.run(resume_from_checkpoint=job.runs()[0] / "checkpoints" / "step-00000004", **words)
    assert job.final() == straight
    assert job.losses() == {step: loss for step, loss in losses.items() if step > 4}


def test_joined_samples_are_fewer_and_train_as_much(job: Any):
    words = {"dataset": chats(job.folder), "num_train_epochs": 1, "max_steps": None, "save_steps": 1}
    job.run(**words)
    apart = job.rows()[-1]
    job.run(combine="true", **words)
    joined, losses = job.rows()[-1], job.losses()
    assert joined["tokens"] == apart["tokens"]
    assert len(losses) < 4, "samples of up to 64 tokens, so fewer steps of 4"
    straight = job.final()
    job.run(combine="true", resume_from_checkpoint=job.runs()[-1] / "checkpoints" / "step-00000001", **words)
    assert job.final() == straight
    assert "only texts and chats" in job.run(expect=2, combine="true", **{**words, "task_type": "seq_cls"})


def test_what_asks_for_something_that_rows_do_not_have_is_refused(job: Any):
    said = job.run(expect=2, truncation_strategy="split", task_type="seq_cls")
    assert "a row of seq_cls cannot be split" in said
    assert "no row says how much it weighs" in job.run(expect=3, order="weighted")
    dataset = chats(job.folder)
    rows = [{**json.loads(line), "weight": 0} for line in dataset.read_text().splitlines()]
    assert "its weight is 0" in job.run(expect=3, dataset=write(job.folder / "light.jsonl", rows))


def test_a_teacher_is_asked_once_and_its_student_goes_on(job: Any, tiny_model_dir: Any):
    words = {"task_type": "distill", "teacher": tiny_model_dir("qwen2", seed=3), "top_k": 5}
    said = job.run(**words)
    assert "Asking the teacher" in said
    straight, losses = job.final(), job.losses()
    assert losses[8] < losses[1]
    (kept,) = (job.folder / "cache" / "teachers").iterdir()
    asked = {file.name: file.stat().st_mtime_ns for file in kept.iterdir()}
    job.run(resume_from_checkpoint=job.runs()[0] / "checkpoints" / "step-00000004", **words)
    assert job.final() == straight
    assert {file.name: file.stat().st_mtime_ns for file in kept.iterdir()} == asked
    live = {name: value for name, value in words.items() if name != "top_k"}
    job.run(**live)
    alive = job.losses()
    size = json.loads((job.model / "config.json").read_text())["vocab_size"]
    job.run(**{**words, "top_k": size})
    assert job.losses() == pytest.approx(alive, rel=1e-4), "all tokens that are kept tell as much as the teacher itself"


def test_a_tagger_learns_places_and_answers_with_places(job: Any):
    line = LINES[0]
    start = line.index("violin maker")
    rows = [
        {"text": line[n % 3 * 4 :], "label": [[start - n % 3 * 4, start + 12 - n % 3 * 4, "JOB"]]} for n in range(2)
    ]
    job.model = save_encoder(job.folder / "encoder", "bert")
    told = job.run(
        dataset=write(job.folder / "spans.jsonl", rows * 8),
        val_dataset=job.folder / "spans.jsonl",
        train_type="full",
        learning_rate=3e-3,
        max_steps=20,
        save_steps=20,
        class_weights="balanced",
    )
    assert "token_cls" in told and "JOB" in told
    asked = write(job.folder / "new.jsonl", [{"text": line}, {"tokens": line.split()}])
    job.call("infer", "--model", job.output_dir, "--val_dataset", asked, "--result_path", job.folder / "out.jsonl")
    first, second = (json.loads(row) for row in (job.folder / "out.jsonl").read_text().splitlines())
    assert first["spans"] == [{"start": start, "end": start + 12, "label": "JOB", "text": "violin maker"}]
    assert first["tokens"][-1] == "." and len(first["tags"]) == len(first["tokens"])
    assert "spans" not in second and len(second["tags"]) == len(line.split())
