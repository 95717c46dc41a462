"""Replay, EWC, divergence and their kin each keep more of an earlier task than plain tuning does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

WORDS = ["spruce", "maple", "scroll", "bridge", "varnish", "string", "bow", "peg"]


def task(path: Path, question: str, answer: str, rows: int) -> Path:
    """Short chats; both tasks ask about the same words, in other ways."""
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": question.format(WORDS[row % 8], row)},
                    {"role": "assistant", "content": answer.format(WORDS[(row * 3) % 8])},
                ]
            }
        )
        for row in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def two_tasks(job: Any, tmp_path: Path) -> tuple[Any, Path]:
    """A model that has learned the first task, about to learn the second; and the first."""
    first = task(tmp_path / "first.jsonl", "What is {0}, {1}?", "It is a part: {0}.", 32)
    second = task(tmp_path / "second.jsonl", "{1}. Name {0}!", "0 1 2 {0} (x) 3", 32)
    steps = {"max_steps": 40, "save_steps": 1000, "learning_rate": 5e-3, "train_type": "full"}
    job.data = first
    job.run(**steps, output_dir=tmp_path / "learned")
    (run,) = (tmp_path / "learned").glob("v*")
    job.model, job.data = run / "checkpoints" / "step-00000040", second
    return job, first


def forgotten(job: Any, first: Path, **flags: Any) -> tuple[float, float]:
    """How much the loss on the first task rose, and the last loss on the second."""
    job.run(max_steps=24, save_steps=1000, learning_rate=2e-3, train_type="full", general_dataset=first, **flags)
    told = json.loads((job.runs()[-1] / "forgetting.json").read_text())
    (change,) = (change for change in told["changes"] if change["metric"] == "loss")
    losses = job.losses()
    assert told["before"][str(first)]["loss"] == change["before"]
    return change["after"] - change["before"], losses[24]


@pytest.mark.slow
def test_each_remedy_forgets_less_than_plain_tuning(two_tasks: tuple[Any, Path]) -> None:
    job, first = two_tasks
    plain, _ = forgotten(job, first)
    assert plain > 0.2, "plain tuning forgets"
    report = (job.runs()[-1] / "report.md").read_text()
    assert "What was forgotten" in report and "first.jsonl" in report
    remedies: dict[str, dict[str, Any]] = {
        "replay": {"replay_dataset": first, "replay_ratio": 0.3},
        "ewc": {"ewc": 2000},
        "kl": {"kl": 1.0},
        "lwf": {"lwf": 1.0},
        "l2sp": {"l2sp": 2.0},
    }
    rises = {name: forgotten(job, first, **flags) for name, flags in remedies.items()}
    for name, (rise, loss) in rises.items():
        assert rise < 0.8 * plain, (name, rise, plain)
        assert loss < 4.0, (name, loss, "the new task is still learned")


def test_a_resumed_run_with_all_remedies_ends_the_same(two_tasks: tuple[Any, Path]) -> None:
    job, first = two_tasks
    flags: dict[str, Any] = {
        "general_dataset": first, "ewc": 100, "kl": 0.5, "lwf": 0.1, "l2sp": 0.01, "replay_dataset": first,
    }  # fmt: skip
    job.run(**flags)
    straight, before = job.final(), json.loads((job.runs()[-1] / "forgetting.json").read_text())["before"]
    job.run(resume_from_checkpoint=job.runs()[0] / "checkpoints" / "step-00000004", **flags)
    assert job.final() == straight
    assert json.loads((job.runs()[-1] / "forgetting.json").read_text())["before"] == before
