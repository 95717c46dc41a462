"""The watcher: what is shown and written, and that nothing it meets can stop a run."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.base.console import Console
from luthier.base.rundir import RunDir
from luthier.engine.watcher import EvalRow, StepRow
from luthier.run.plan import RunPlan, count, plan_lines
from luthier.run.watch import Watch, duration, evaluation_line, step_line

PLAN = RunPlan(
    model="models/tiny",
    parameters=5_000_000,
    trained_parameters=50_000,
    method="lora",
    objective="sft",
    samples=800,
    tokens_per_epoch=123_456,
    steps=50,
    epochs=1.0,
    global_batch=16,
    device="cpu",
    world_size=1,
    run_dir="runs/x",
)
ROW = StepRow(
    step=5,
    total_steps=50,
    epoch=0.1,
    loss=2.5,
    metrics={"token_accuracy": 0.25},
    grad_norm=1.5,
    learning_rate=1e-4,
    tokens=5000,
    trained_tokens=2500,
    tokens_per_second=1234.5678,
    seconds_per_step=0.5,
    memory_gib=1.25,
    eta_seconds=22.5,
)
EVALUATION = EvalRow(step=5, epoch=0.1, metrics={"loss": 2.0, "token_accuracy": 0.3}, seconds=1.5, best=True)


def open_watch(folder: Path, *, resumed_step: int = 0) -> Watch:
    return Watch(RunDir(folder), Console(), resumed_step=resumed_step)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_rows_hold_training_and_evaluation(tmp_path: Path) -> None:
    watch = open_watch(tmp_path)
    watch.started(PLAN)
    watch.step(ROW)
    watch.log(ROW)
    watch.evaluated(EVALUATION)
    train, evaluation = rows_of(tmp_path / "metrics.jsonl")
    assert train["step"] == 5
    assert train["loss"] == 2.5
    assert train["token_accuracy"] == 0.25
    assert train["learning_rate"] == 1e-4
    assert train["tokens_per_second"] == 1234.6
    assert evaluation == {
        "step": 5,
        "epoch": 0.1,
        "eval_loss": 2.0,
        "eval_token_accuracy": 0.3,
        "eval_seconds": 1.5,
        "best": True,
    }


def test_events_have_the_shape_of_fine_tuning_events(tmp_path: Path) -> None:
    watch = open_watch(tmp_path)
    watch.started(PLAN)
    watch.log(ROW)
    watch.evaluated(EVALUATION)
    watch.event("checkpoint", "saved step-00000005", step=5)
    watch.event("skipped_step", "the gradient was not finite", level="warn", step=6)
    events = rows_of(tmp_path / "events.jsonl")
    for event in events:
        assert set(event) == {"object", "id", "created_at", "level", "message", "type", "data"}
        assert event["object"] == "fine_tuning.job.event"
        assert event["id"].startswith("ftevent-")
        assert isinstance(event["created_at"], int)
    assert len({event["id"] for event in events}) == 5
    assert [event["type"] for event in events] == ["message", "metrics", "metrics", "message", "message"]
    assert events[0]["data"]["trained_parameters"] == 50_000
    assert events[1]["data"] == {
        "step": 5,
        "total_steps": 50,
        "train_loss": 2.5,
        "train_mean_token_accuracy": 0.25,
    }
    assert events[2]["data"] == {
        "step": 5,
        "total_steps": 50,
        "full_valid_loss": 2.0,
        "full_valid_mean_token_accuracy": 0.3,
    }
    assert events[3]["data"] == {"event": "checkpoint", "step": 5}
    assert events[4]["level"] == "warn"


def test_rows_after_the_resumed_step_are_removed(tmp_path: Path) -> None:
    first = open_watch(tmp_path)
    first.started(PLAN)
    for step in (5, 10, 15):
        first.log(replace(ROW, step=step))
        first.event("checkpoint", f"saved {step}", step=step)
    second = open_watch(tmp_path, resumed_step=10)
    second.log(replace(ROW, step=15, loss=1.0))
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15]
    assert rows[2]["loss"] == 1.0
    messages = [row["message"] for row in rows_of(tmp_path / "events.jsonl")]
    assert messages[0] == "Training started"
    assert messages.count("saved 10") == 1
    assert "saved 15" not in messages


def test_not_a_number_becomes_null(tmp_path: Path) -> None:
    watch = open_watch(tmp_path)
    watch.log(replace(ROW, loss=float("nan"), grad_norm=float("inf")))
    (row,) = rows_of(tmp_path / "metrics.jsonl")
    assert row["loss"] is None
    assert row["grad_norm"] is None


def test_a_full_disk_costs_one_warning_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = open_watch(tmp_path)
    watch.started(PLAN)
    write = os.write

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for step in range(1, 6):
        watch.log(replace(ROW, step=step))
        watch.evaluated(replace(EVALUATION, step=step))
    monkeypatch.setattr(os, "write", write)
    watch.log(replace(ROW, step=6))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    assert "metrics.jsonl" in warnings[0]
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == [6]


def test_a_run_directory_that_disappears_does_not_raise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    watch = open_watch(folder)
    folder.rmdir()
    folder.write_text("a file now")
    watch.log(ROW)
    watch.event("checkpoint", "saved")
    assert "training goes on" in capsys.readouterr().err


def test_plain_lines_when_nothing_can_be_repainted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_watch(tmp_path) as watch:
        watch.started(PLAN)
        watch.step(ROW)
        watch.log(ROW)
        watch.evaluated(EVALUATION)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert err.count("step  5/50") == 1  # the live line is not printed, the log line is
    assert "best so far" in err
    assert "50k parameters (1.00%) by lora" in err


def test_json_mode_gives_machines_the_same_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Watch(RunDir(tmp_path), Console(json=True)) as watch:
        watch.started(PLAN)
        watch.log(ROW)
        watch.evaluated(EVALUATION)
        watch.event("checkpoint", "saved", step=5)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["type"] for row in rows] == ["event", "metrics", "metrics", "event"]
    assert rows[0]["data"]["trained_parameters"] == 50_000
    assert rows[1]["loss"] == 2.5
    assert rows[2]["eval_loss"] == 2.0
    assert rows[3]["data"] == {"event": "checkpoint", "step": 5}


def test_secrets_are_kept_out_of_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    watch = open_watch(tmp_path)
    watch.event("tracker", "login with 0123456789abcdef refused", url="https://me:pw@host/x")
    text = (tmp_path / "events.jsonl").read_text()
    assert "0123456789abcdef" not in text
    assert "me:pw" not in text
    assert "https://***@host/x" in text


def test_sentences() -> None:
    assert step_line(ROW) == (
        "step  5/50 ( 10%)  loss 2.5000  token accuracy 25.0%  lr 1.00e-04  1,235 tok/s  1.2 GiB  eta 22.5 s"
    )
    assert evaluation_line(replace(EVALUATION, best=False)) == (
        "evaluation at step 5:  loss 2.0000  token accuracy 30.0%  (1.5 s)"
    )
    assert plan_lines(replace(PLAN, samples=0, tokens_per_epoch=None))["data"] == "streamed"
    assert plan_lines(replace(PLAN, world_size=2))["device"] == "2 x cpu"
    assert [count(n) for n in (7, 1500, 5_000_000, 7_620_000_000)] == ["7", "1.5k", "5M", "7.62B"]
    assert [duration(s) for s in (4.25, 65, 7384)] == ["4.2 s", "1:05", "2:03:04"]


def test_going_back_to_a_checkpoint_replaces_the_rows_after_it(tmp_path: Path) -> None:
    watch = open_watch(tmp_path)
    for step, loss in ((5, 3.0), (10, 2.0), (15, 9.0), (10, 2.5), (15, 2.0)):
        watch.log(replace(ROW, step=step, loss=loss))
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(5, 3.0), (10, 2.5), (15, 2.0)]
