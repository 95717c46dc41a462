"""What is told of a training in numbers: each step, the average of a few of them, each evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from luthier.engine.checkpoint import State
from luthier.engine.mesh import peak_memory
from luthier.engine.step import StepResult
from luthier.engine.watcher import EvalRow, StepRow, Watcher


@dataclass(slots=True)
class Means:
    """Metrics as (sum, count) until they are read."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def add(self, values: Mapping[str, tuple[float, float]]) -> None:
        for name, (total, count) in values.items():
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (before[0] + total, before[1] + count)

    def read(self) -> dict[str, float]:
        """The mean of each metric that has been counted."""
        return {name: total / count for name, (total, count) in self.sums.items() if count > 0}


class Clock:
    """How fast steps are since it was started or restarted."""

    def __init__(self) -> None:
        self.since = self.until = time.perf_counter()
        self.tokens = self.steps = 0

    def add(self, tokens: int) -> None:
        """A step is done."""
        self.until = time.perf_counter()
        self.tokens += tokens
        self.steps += 1

    def rates(self) -> tuple[float, float]:
        """(tokens per second, seconds per step), up to the end of the last step."""
        elapsed = max(self.until - self.since, 1e-9)
        return self.tokens / elapsed, elapsed / max(1, self.steps)

    def restart(self) -> None:
        """Count anew from the end of the last step."""
        self.since, self.tokens, self.steps = self.until, 0, 0


class Log:
    """Tells a watcher how training goes.

    A step is told when the next one is under way: the device does not wait until something is said.

    Args:
        every: steps of an average.
        rate: the learning rate of a 0-based step.
        per_epoch: samples of an epoch, where that is known.
    """

    def __init__(
        self,
        watcher: Watcher,
        device: torch.device,
        *,
        every: int,
        total_steps: int,
        rate: Callable[[int], float],
        per_epoch: int | None,
    ):
        self._watcher, self._device = watcher, device
        self._every, self._total_steps, self._rate, self._per_epoch = every, total_steps, rate, per_epoch
        self._means = Means()
        self._clock = Clock()
        self._untold: StepResult | None = None

    def pause(self) -> None:
        """Time has passed that was not the steps'."""
        self._clock = Clock()

    def note(self, result: StepResult, *, sound: bool) -> None:
        """A step is done.  Nothing is told of one that was not sound."""
        self._clock.add(result.tokens)
        if sound:
            self._untold = result

    def tell(self, state: State) -> None:
        """Say how the last step went, after which `state` is, unless that is said."""
        result, self._untold = self._untold, None
        if result is None:
            return
        self._means.add({**result.means, "loss": (result.loss, 1.0), "grad_norm": (result.grad_norm, 1.0)})
        self._watcher.step(self._row(state, {"loss": result.loss, "grad_norm": result.grad_norm}))
        if state.step % self._every == 0 or state.step in (1, self._total_steps):
            self._watcher.log(self._row(state, self._means.read()))
            self._means = Means()
            self._clock.restart()

    def evaluated(self, state: State, metrics: Mapping[str, float], seconds: float, *, best: bool) -> None:
        self._watcher.evaluated(EvalRow(state.step, self._epochs(state), metrics, seconds, best))
        self.pause()

    def _row(self, state: State, means: Mapping[str, float]) -> StepRow:
        tokens_per_second, seconds_per_step = self._clock.rates()
        return StepRow(
            step=state.step,
            total_steps=self._total_steps,
            epoch=self._epochs(state),
            loss=means["loss"],
            metrics={name: value for name, value in means.items() if name not in ("loss", "grad_norm")},
            grad_norm=means["grad_norm"],
            learning_rate=self._rate(state.step - 1),
            tokens=state.tokens,
            trained_tokens=round(state.trained),
            tokens_per_second=tokens_per_second,
            seconds_per_step=seconds_per_step,
            memory_gib=peak_memory(self._device),
            eta_seconds=(self._total_steps - state.step) * seconds_per_step,
        )

    def _epochs(self, state: State) -> float:
        """Passes over the training set so far."""
        return round(state.epoch + state.consumed / self._per_epoch, 4) if self._per_epoch else float(state.epoch)
