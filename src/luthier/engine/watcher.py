"""What the engine tells whoever watches a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from luthier.base.records import Json


@dataclass(frozen=True, slots=True)
class StepRow:
    """One optimizer step, or the average of the steps since the last log line."""

    step: int
    """Steps taken so far: 1 after the first."""
    total_steps: int
    epoch: float
    """Passes over the training set so far."""
    loss: float
    metrics: Mapping[str, float]
    """Further metrics of the objective, for example token_accuracy."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Tokens read since the run began, all devices together."""
    trained_tokens: int
    """Tokens with a loss since the run began."""
    tokens_per_second: float
    seconds_per_step: float
    memory_gib: float
    """Peak of the GPU, or of the process on a CPU."""
    eta_seconds: float


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One pass over the validation set."""

    step: int
    epoch: float
    metrics: Mapping[str, float]
    """loss, token_accuracy, ..."""
    seconds: float
    best: bool
    """Whether this is the best evaluation so far."""


class Watcher(Protocol):
    """Whoever is told about a run.  Nothing a watcher does may stop training."""

    def step(self, row: StepRow) -> None:
        """After every optimizer step; must be cheap."""
        ...

    def log(self, row: StepRow) -> None:
        """Every `log.every` steps: the averages since the last call."""
        ...

    def evaluated(self, row: EvalRow) -> None:
        """After every evaluation."""
        ...

    def event(self, type: str, message: str, *, level: str = "info", **data: Json) -> None:
        """Something worth remembering: checkpoint, skipped_step, loss_spike, no_trained_tokens, stopping, finished."""
        ...
