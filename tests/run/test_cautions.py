"""What a report warns of: each reason for distrust is said, a good run is left in peace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from luthier.data.report import DataReport, SetReport
from luthier.run.cautions import cautions
from luthier.run.plan import RunPlan

PLAN = RunPlan(
    model="models/my base",
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
    run_dir="runs/v1",
)
SET = SetReport(
    name="a.jsonl#500",
    use="train",
    rows=500,
    kept=490,
    dropped={"empty_messages": 10},
    repaired={},
    truncated=0,
    split=0,
    samples=490,
    used=490,
    exact_duplicates=0,
    near_duplicates=0,
    tokens=1000,
    trained_tokens=400,
    lengths=[1, 2, 3, 4, 5],
    stop_share=1.0,
    chats=490,
    ignored_columns=[],
)
DATA = DataReport([SET], overlap=0, max_length=2048)


def train_row(step: int, loss: float) -> dict:
    return {"step": step, "loss": loss, "token_accuracy": 0.5, "tokens": step * 10, "tokens_per_second": 100.0}


def eval_row(step: int, loss: float) -> dict:
    return {"step": step, "eval_loss": loss, "eval_token_accuracy": 0.5, "eval_seconds": 1.0, "best": True}


GOOD: dict[str, Any] = {
    "plan": PLAN,
    "metrics": [eval_row(0, 4.0), train_row(1, 4.0), eval_row(25, 2.1), train_row(50, 1.0), eval_row(50, 1.5)],
    "events": [],
    "data": DATA,
    "complete": True,
}


def test_nothing_is_said_about_a_good_run() -> None:
    assert cautions(**GOOD) == []
    assert cautions(**GOOD | {"data": None}) == []


def test_a_rising_evaluation_loss_is_called_overfitting() -> None:
    rows = [train_row(1, 4.0), eval_row(25, 1.5), train_row(50, 0.1), eval_row(50, 1.9)]
    (line,) = cautions(**GOOD | {"metrics": rows})
    assert "rose from 1.5000 at step 25 to 1.9000" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan": replace(PLAN, samples=40)}, "Only 40 training samples"),
        ({"metrics": [train_row(1, 2.0), train_row(50, 2.5), eval_row(50, 1.0)]}, "did not fall"),
        ({"metrics": [train_row(1, 2.0), train_row(50, 1.5)]}, "No evaluation data"),
        ({"complete": False}, "not complete"),
        ({"data": replace(DATA, sets=[replace(SET, kept=400)])}, "100 of 500 rows were left out"),
        ({"data": replace(DATA, sets=[replace(SET, truncated=20)])}, "longer than 2048 tokens"),
        ({"data": replace(DATA, sets=[replace(SET, exact_duplicates=50)])}, "50 of 490 rows repeat"),
        ({"data": replace(DATA, overlap=3)}, "3 evaluation samples were also trained on"),
        ({"events": [{"data": {"event": "skipped_step", "step": 3}}] * 2}, "not a number: 2."),
    ],
)
def test_each_reason_for_distrust_is_said(change: dict, words: str) -> None:
    (line,) = cautions(**GOOD | change)
    assert words in line
