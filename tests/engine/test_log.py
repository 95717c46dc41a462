"""Metrics are (sum, count) until they are read; a step is told once, and its time is the time of steps alone."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from luthier.engine.checkpoint import State
from luthier.engine.log import Clock, Log, Means
from luthier.engine.step import StepResult
from luthier.engine.watcher import EvalRow, StepRow


class Heard:
    """A watcher that keeps the rows it is told."""

    def __init__(self) -> None:
        self.steps: list[StepRow] = []
        self.lines: list[StepRow] = []
        self.evaluations: list[EvalRow] = []

    def step(self, row: StepRow) -> None:
        self.steps.append(row)

    def log(self, row: StepRow) -> None:
        self.lines.append(row)

    def evaluated(self, row: EvalRow) -> None:
        self.evaluations.append(row)

    def event(self, *_: Any, **__: Any) -> None:
        raise AssertionError("a log tells numbers only")


def log(heard: Heard, *, every: int = 2, total_steps: int = 5, per_epoch: int | None = 8) -> Log:
    device = torch.device("cpu")
    return Log(heard, device, every=every, total_steps=total_steps, rate=lambda step: 0.1 * step, per_epoch=per_epoch)


def result(loss: float) -> StepResult:
    return StepResult(loss=loss, means={"accuracy": (1.0, 4.0)}, grad_norm=2 * loss, trained=4.0, tokens=100)


def test_means_weigh_by_count():
    means = Means()
    means.add({"accuracy": (1.0, 1.0)})
    means.add({"accuracy": (0.0, 3.0), "nothing": (0.0, 0.0)})
    assert means.read() == {"accuracy": 0.25}


def test_rates_are_those_of_whole_steps(monkeypatch: pytest.MonkeyPatch):
    moments = iter((0.0, 2.0, 4.0, 10.0))  # whoever reads late reads the same
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = Clock()
    clock.add(100)
    clock.add(100)
    assert clock.rates() == (50.0, 2.0)
    clock.restart()
    clock.add(300)
    assert clock.rates() == (50.0, 6.0)


def test_a_step_is_told_once_and_averages_at_the_first_the_last_and_every_so_many():
    heard = Heard()
    told = log(heard)
    for step in range(1, 6):
        told.note(result(float(step)), sound=True)
        assert len(heard.steps) == step - 1, "not before it is asked for"
        state = State(step=step, epoch=0, consumed=4 * step, tokens=100 * step, trained=4.0 * step)
        told.tell(state)
        told.tell(state)
    assert [row.loss for row in heard.steps] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [(row.step, row.loss, row.grad_norm) for row in heard.lines] == [
        *((1, 1.0, 2.0), (2, 2.0, 4.0), (4, 3.5, 7.0), (5, 5.0, 10.0)),
    ]
    assert heard.lines[2].metrics == {"accuracy": 0.25} and heard.steps[2].metrics == {}
    assert [row.learning_rate for row in heard.steps[:3]] == pytest.approx([0.0, 0.1, 0.2])
    assert heard.steps[2].epoch == 1.5 and heard.steps[2].tokens == 300 and heard.steps[2].trained_tokens == 12


def test_nothing_is_told_of_a_step_that_is_not_sound():
    heard = Heard()
    told = log(heard, every=1)
    told.note(result(float("nan")), sound=False)
    told.tell(State(step=1))
    assert not heard.steps and not heard.lines


def test_an_evaluation_takes_no_time_from_the_steps(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    heard = Heard()
    told = log(heard, every=3, per_epoch=None)
    now = 50.0
    told.evaluated(State(step=2, epoch=1, consumed=7), {"loss": 1.0}, 50.0, best=True)
    now = 52.0
    told.note(result(1.0), sound=True)
    told.tell(State(step=3, epoch=1))
    assert heard.evaluations == [EvalRow(2, 1.0, {"loss": 1.0}, 50.0, True)]
    (line,) = heard.lines
    assert line.seconds_per_step == 2.0 and line.tokens_per_second == 50.0 and line.eta_seconds == 4.0
