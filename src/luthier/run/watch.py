"""Watching a run: the terminal, metrics.jsonl, events.jsonl and the trackers.

Nothing here may stop training: a line that cannot be written is given up with one warning.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Literal

from luthier.base.console import Console, Line
from luthier.base.errors import RunError
from luthier.base.records import Json
from luthier.base.rundir import RunDir
from luthier.base.secrets import redact
from luthier.engine.watcher import EvalRow, StepRow
from luthier.run.plan import RunPlan, plan_lines
from luthier.run.plots import sparkline
from luthier.run.trackers import Background

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


class Watch:
    """The engine's `Watcher` on rank 0.  Use as a context: leaving it closes the live line and the trackers.

    Args:
        run: where the rows go.
        console: the terminal, or JSON lines for a program.
        trackers: already started.
        resumed_step: the step a run goes on from; rows that an interrupted run wrote after it are removed.
    """

    def __init__(self, run: RunDir, console: Console, trackers: Sequence[Background] = (), *, resumed_step: int = 0):
        self._run = run
        self._console = console
        self._trackers = trackers
        self._open = ExitStack()
        self._line: Line | None = None
        self._losses: list[float] = []
        self._total_steps = 0
        self._logged_step = resumed_step
        self._forget_after(resumed_step, METRICS, EVENTS)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live line away and give the trackers a moment to finish.  Closing twice is harmless."""
        self._open.close()
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = ()

    def started(self, plan: RunPlan) -> None:
        self._total_steps = plan.steps
        row = _event_row("message", "info", "Training started", {"event": "started", **asdict(plan)})
        if self._console.json:
            self._emit(row)
        else:
            self._console.table("Training", [{"": name, " ": text} for name, text in plan_lines(plan).items()])
        self._append(EVENTS, row)
        self._line = self._open.enter_context(self._console.live())

    def step(self, row: StepRow) -> None:
        if self._line is not None:
            self._line.update(f"{step_line(row)}  {sparkline(self._losses[-200:], 20)}")

    def log(self, row: StepRow) -> None:
        if row.step <= self._logged_step:  # the engine went back to a checkpoint
            self._forget_after(row.step - 1, METRICS)
        self._logged_step = row.step
        self._losses.append(row.loss)
        fields = step_fields(row)
        if not self._console.paints:
            self._console.metrics(step_line(row), **fields)
        self._append(METRICS, fields)
        message = f"Step {row.step}/{row.total_steps}: training loss={row.loss:.4f}"
        data: dict[str, Json] = {"step": row.step, "total_steps": row.total_steps, "train_loss": row.loss}
        if "token_accuracy" in row.metrics:
            data["train_mean_token_accuracy"] = row.metrics["token_accuracy"]
        self._append(EVENTS, _event_row("metrics", "info", message, data))
        values = {"loss": row.loss, **row.metrics, "grad_norm": row.grad_norm, "learning_rate": row.learning_rate}
        speed = {"tokens_per_second": row.tokens_per_second, "memory_gib": row.memory_gib, "epoch": row.epoch}
        self._track(row.step, "train", values | speed)

    def evaluated(self, row: EvalRow) -> None:
        fields: dict[str, Json] = {"step": row.step, "epoch": row.epoch}
        fields |= {f"eval_{name}": value for name, value in row.metrics.items()}
        fields |= {"eval_seconds": round(row.seconds, 3), "best": row.best}
        self._console.metrics(evaluation_line(row), **fields)
        self._append(METRICS, fields)
        data: dict[str, Json] = {"step": row.step, "total_steps": self._total_steps}
        for name, theirs in (("loss", "full_valid_loss"), ("token_accuracy", "full_valid_mean_token_accuracy")):
            if name in row.metrics:
                data[theirs] = row.metrics[name]
        self._append(EVENTS, _event_row("metrics", "info", evaluation_line(row), data))
        self._track(row.step, "eval", row.metrics)

    def event(self, type: str, message: str, *, level: str = "info", **data: Json) -> None:
        message = redact(message)
        row = _event_row("message", level, message, {"event": type, **data})
        if self._console.json:
            self._emit(row)
        elif type == "failed":
            pass  # the command itself says what ended it
        elif level == "info":
            self._console.say(message)
        else:
            self._console.warn(message)
        self._append(EVENTS, row)

    def _emit(self, row: Mapping[str, Json]) -> None:
        self._console.emit("event", level=row["level"], message=row["message"], data=row["data"])

    def _forget_after(self, step: int, *names: str) -> None:
        for name in names:
            try:
                self._run.truncate_rows(name, lambda row: _step_of(row) <= step)
            except (OSError, RunError) as error:
                self._console.warn(f"rows after step {step} could not be removed from {name}: {error}")

    def _append(self, name: str, row: Mapping[str, Json]) -> None:
        try:
            self._run.append_json(name, row)
        except (OSError, RunError) as error:
            # One warning for the console per reason: the disk may have room again later.
            self._console.warn(f"rows are missing from {name}, training goes on: {error}")

    def _track(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, {f"{prefix}/{name}": value for name, value in values.items()})


class Unwatched:
    """The `Watcher` of ranks other than 0, which have nothing to say."""

    def started(self, plan: RunPlan) -> None: ...

    def step(self, row: StepRow) -> None: ...

    def log(self, row: StepRow) -> None: ...

    def evaluated(self, row: EvalRow) -> None: ...

    def event(self, type: str, message: str, *, level: str = "info", **data: Json) -> None: ...


def step_fields(row: StepRow) -> dict[str, Json]:
    """A training row of metrics.jsonl."""
    return {
        "step": row.step,
        "total_steps": row.total_steps,
        "epoch": row.epoch,
        "loss": row.loss,
        **row.metrics,
        "grad_norm": row.grad_norm,
        "learning_rate": row.learning_rate,
        "tokens": row.tokens,
        "trained_tokens": row.trained_tokens,
        "tokens_per_second": round(row.tokens_per_second, 1),
        "seconds_per_step": round(row.seconds_per_step, 4),
        "memory_gib": round(row.memory_gib, 3),
        "eta_seconds": round(row.eta_seconds, 1),
        "time": round(time.time(), 3),
    }


def step_line(row: StepRow) -> str:
    """A training row for a person."""
    width = len(str(row.total_steps))
    parts = [f"step {row.step:>{width}}/{row.total_steps} ({row.step / max(1, row.total_steps):4.0%})"]
    parts += [f"loss {row.loss:.4f}", *_metric_texts(row.metrics)]
    parts += [f"lr {row.learning_rate:.2e}", f"{row.tokens_per_second:,.0f} tok/s", f"{row.memory_gib:.1f} GiB"]
    return "  ".join([*parts, f"eta {duration(row.eta_seconds)}"])


def evaluation_line(row: EvalRow) -> str:
    """An evaluation row for a person."""
    others = {name: value for name, value in row.metrics.items() if name != "loss"}
    parts = [f"loss {row.metrics['loss']:.4f}"] if "loss" in row.metrics else []
    parts += [*_metric_texts(others), f"({duration(row.seconds)})", *(["best so far"] if row.best else [])]
    return f"evaluation at step {row.step}:  {'  '.join(parts)}"


def _metric_texts(metrics: Mapping[str, float]) -> list[str]:
    return [
        f"{name.replace('_', ' ')} {value:.1%}"
        if name.endswith("accuracy")
        else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in metrics.items()
    ]


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 1:05 or 2:03:04."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _event_row(
    type: Literal["message", "metrics"], level: str, message: str, data: Mapping[str, Json]
) -> dict[str, Json]:
    """A row of events.jsonl, in the shape of OpenAI's fine-tuning events."""
    return {
        "object": "fine_tuning.job.event",
        "id": f"ftevent-{secrets.token_hex(12)}",
        "created_at": int(time.time()),
        "level": level,
        "message": message,
        "type": type,
        "data": {name: redact(value) if isinstance(value, str) else value for name, value in data.items()},
    }


def _step_of(row: Mapping[str, Json]) -> int:
    """The step a row of either file belongs to; 0 for events without one, which stay."""
    data = row.get("data")
    step = row.get("step") if not isinstance(data, dict) else data.get("step")
    return step if isinstance(step, int) else 0
