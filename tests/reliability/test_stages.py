"""Training in stages: each on the model of the one before, taken up again wherever it was stopped, and judged on what
it may have forgotten."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from samples import ROWS
from saved import hashes

from luthier.base.sealed import verify
from luthier.data import loader


def flags(job: Any, **more: Any) -> dict[str, Any]:
    """Three stages on chats of three kinds; the second is the longest."""
    for name in "abc":
        rows = [
            {"messages": [{"role": "user", "content": f"{name} {n}?"}, {"role": "assistant", "content": name * 3}]}
            for n in range(12)
        ]
        (job.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = {"command": "train", "dataset": None, "stages": [f"{name}={job.folder / name}.jsonl" for name in "abc"]}
    return {**named, "max_steps": 4, "stages.b.train.max_steps": 8, "save_steps": 1, "save_total_limit": 3, **more}


def sequence(job: Any) -> Path:
    return job.runs()[-1]


def finals(job: Any) -> list[tuple[str, str]]:
    """sha256 of the trained weights and of the optimizer that each stage has ended with."""
    stored = json.loads((sequence(job) / "stages.json").read_text())
    assert list(stored) == ["a", "b", "c"]
    return [hashes(Path(left["artefact"])) for left in stored.values()]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_each_stage_starts_where_the_one_before_has_ended(job: Any, method: str):
    rate = {"learning_rate": 1e-3} if method == "full" else {}
    said = job.run(**flags(job, train_type=method, **rate))
    assert "Stage 3 of 3: c" in said and "Sets of earlier stages" in said
    rows = json.loads((sequence(job) / "forgetting.json").read_text())
    losses = {Path(row["set"]).name: row["scores"] for row in rows if row["metric"] == "loss"}
    assert list(losses["a.jsonl"]) == ["a", "b", "c"] and list(losses["b.jsonl"]) == ["b", "c"]
    # What the third run finds before its first step is what the second has found at its end.
    runs = [Path(left["run"]) for left in json.loads((sequence(job) / "stages.json").read_text()).values()]
    second, third = (json.loads((run / "forgetting.json").read_text()) for run in runs[1:])
    (name,) = second["after"]
    assert third["before"][name]["loss"] == pytest.approx(second["after"][name]["loss"], rel=1e-5)
    assert losses["a.jsonl"]["b"] == second["after"][name]["loss"]
    report = (sequence(job) / "report.md").read_text()
    assert "3 of 3 stages finished" in report and "What was forgotten" in report
    flag = "--adapters" if method == "lora" else "--model"
    asked = job.folder / "ask.jsonl"
    asked.write_text('{"query": "c 3?"}\n')
    job.call("infer", flag, sequence(job), "--val_dataset", asked, "--result_path", job.folder / "said.jsonl")


def test_a_file_that_a_later_stage_lacks_is_missed_before_the_first(job: Any):
    words = job.argv(**flags(job))
    (job.folder / "c.jsonl").unlink()
    said = job.call(*words, expect=3)
    assert "c.jsonl: no such file" in said and "Stage 1" not in said and not job.output_dir.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["a", "b", "c"])
def test_stages_that_were_stopped_anywhere_end_as_those_that_went_through(job: Any, stage: str, number: int):
    def slowly() -> None:
        real = loader.cut

        def cut(*arguments: Any) -> Any:
            time.sleep(0.2)
            return real(*arguments)

        loader.cut = cut

    words = flags(job)
    job.run(**words)
    straight = finals(job)
    job.output_dir = job.folder / "stopped"
    running = job.start(slowly, **words)
    where = "0" + str("abc".index(stage) + 1) + f"-{stage}"
    running.wait_until(lambda: any(job.output_dir.glob(f"v*/{where}/v*/checkpoints/step-00000002")), timeout=200)
    running.kill(number)
    assert running.wait() == (75 if number == signal.SIGINT else -signal.SIGKILL)
    done = json.loads((sequence(job) / "stages.json").read_text())
    assert list(done) == list("abc")[: "abc".index(stage)]
    if number == signal.SIGINT:
        assert f"--resume_from_checkpoint {sequence(job)}" in running.said()
    said = job.run(resume_from_checkpoint=sequence(job), **words)
    assert len(job.runs()) == 1 and finals(job) == straight
    assert not done or "Stage 1 of 3" not in said


def test_stages_killed_between_two_of_them_go_on_with_the_next(job: Any):
    words = flags(job)
    job.run(**words)
    straight, stored = finals(job), sequence(job) / "stages.json"
    whole = json.loads(stored.read_text())
    # Killed when the second stage had ended, and before that was written down; the third had not begun.
    shutil.rmtree(sequence(job) / "03-c")
    stored.write_text(json.dumps({"a": whole["a"]}))
    job.run(resume_from_checkpoint="true", **words)
    assert finals(job) == straight and len(list(sequence(job).glob("02-b/v*"))) == 1
    said = job.run(resume_from_checkpoint="true", **words)
    assert "Stage" not in said and finals(job) == straight


def test_other_settings_are_refused_when_stages_go_on(job: Any):
    words = flags(job, max_steps=1)
    job.run(**words)
    said = job.run(expect=2, resume_from_checkpoint="true", **{**words, "stages.b.train.max_steps": 3})
    assert "stages.b.train.max_steps" in said
    assert "no stages to go on with" in job.run(expect=2, resume_from_checkpoint=job.folder, **words)


def test_two_processes_go_through_the_stages_together(job: Any):
    words = flags(job, optim="sgd", learning_rate=0.05, lora_dropout=None)
    job.run(**words)
    one = [row["loss"] for row in losses(job)]
    job.run_ranks(2, **words)
    assert [row["loss"] for row in losses(job)] == pytest.approx(one, rel=1e-5)


def losses(job: Any) -> list[dict[str, Any]]:
    files = sorted(sequence(job).glob("0*/v*/metrics.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_stages_of_different_kinds_hand_their_model_on(job: Any):
    from encoders import save_encoder

    for name, rows in ROWS.items():
        (job.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job.model = save_encoder(job.folder / "encoder", "bert")
    recipe = {
        "stages": {
            "words": {"data": {"datasets": f"{job.folder}/texts.jsonl"}, "objective": {"type": "mlm"}},
            "mood": {"data": {"datasets": f"{job.folder}/classes.jsonl"}, "method": {"type": "full"}},
            "names": {"data": {"datasets": f"{job.folder}/tags.jsonl"}},
            "more": {"data": {"datasets": f"{job.folder}/tags.jsonl"}, "method": {"type": "ia3"}},
        }
    }
    (job.folder / "recipe.yaml").write_text(json.dumps(recipe))
    job.run(command="train", config=job.folder / "recipe.yaml", dataset=None, max_steps=2, save_steps=2)
    stored = json.loads((sequence(job) / "stages.json").read_text())
    assert list(stored) == ["words", "mood", "names", "more"]
    assert all(verify(Path(left["artefact"])) is None for left in stored.values())
    assert {path.parent.name for path in sequence(job).glob("*/base")} == {"02-mood", "04-more"}
    forgotten = json.loads((sequence(job) / "forgetting.json").read_text())
    assert {Path(row["set"]).name for row in forgotten} == {"tags.jsonl"}


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ({"a": {"data": {"datasets": "a.jsonl"}, "output_dir": "x"}}, "stages.a.output_dir"),
        ({"a": {"data": {"datasets": "a.jsonl"}, "train": {"epoch": 2}}}, "stages.a: train.epoch"),
        ({"a": {}}, "stages.a: --dataset"),
        ({"a/b": {"data": {"datasets": "a.jsonl"}}}, "letters, digits"),
        ({"a": {"model": {"path": "x"}}}, "stages.a.model.path"),
        (
            {
                "a": {"data": {"datasets": "a.jsonl"}, "method": {"type": "prompt"}},
                "b": {"data": {"datasets": "a.jsonl"}},
            },
            "stages.a: --train_type prompt: what stands before the text cannot become part",
        ),
    ],
)
def test_stages_that_cannot_run_are_refused_before_the_first(job: Any, stages: dict[str, Any], told: str):
    (job.folder / "recipe.yaml").write_text(json.dumps({"stages": stages}))
    assert told in job.run(expect=2, command="train", config=job.folder / "recipe.yaml", dataset=None)
    assert not job.output_dir.exists()
