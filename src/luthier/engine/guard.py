"""Whether a step's numbers can be trusted, and telling people when they cannot."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from luthier.base.errors import RunError
from luthier.engine.step import StepResult
from luthier.engine.watcher import Watcher

SAMPLES_NAMED = 64


class Outliers:
    """Flags a loss above mean + `sigmas` standard deviations of the last `window` steps."""

    def __init__(self, window: int = 128, sigmas: float = 6.0):
        self.losses: deque[float] = deque(maxlen=window)
        self.sigmas = sigmas

    def flag(self, loss: float) -> bool:
        """Whether `loss` stands out; an outlier does not enter the window it was judged by."""
        if len(self.losses) >= 16:
            mean = math.fsum(self.losses) / len(self.losses)
            deviation = math.sqrt(math.fsum((old - mean) ** 2 for old in self.losses) / len(self.losses))
            if loss > mean + self.sigmas * max(deviation, 1e-3 * abs(mean)):
                return True
        self.losses.append(loss)
        return False


class Guard:
    """Looks at every step before the next is begun."""

    def __init__(self, watcher: Watcher):
        self.watcher = watcher
        self._outliers = Outliers()
        self._warned: set[str] = set()
        self._moved = False

    def sound(self, step: int, result: StepResult) -> bool:
        """Whether the gradient is made of numbers.

        Raises:
            RunError: `zero_gradients`, when there is a loss and not one weight would move.
        """
        if not result.finite:
            message = f"Step {step} is not finite (loss {result.loss}); its update is skipped"
            self.watcher.event("skipped_step", message, level="warn", step=step)
            return False
        if result.trained == 0:
            self._warn_once("no_trained_tokens", step, "has no trained token; such steps change nothing")
        elif result.grad_norm > 0.0:
            self._moved = True
        elif result.loss == 0.0:
            message = (
                "teaches nothing: its loss and every gradient are zero. Where rows are compared with each other, "
                "give a step more of them (--per_device_train_batch_size, --gradient_accumulation_steps), or rows that "
                "differ"
            )
            self._warn_once("nothing_to_learn", step, message)
        else:
            fault = "this is a fault in the model's code or in Luthier, please report it"
            thrown = (
                "The updates before it may have thrown the weights too far: lower --learning_rate. If they did not, "
            )
            raise RunError(
                f"step {step}: every gradient is zero although the loss is {result.loss:.4g}",
                code="zero_gradients",
                fix=thrown + fault if self._moved else f"Nothing would be learned; {fault}",
            )
        return True

    def look(self, step: int, result: StepResult, samples: Sequence[int]) -> None:
        """Name the samples of a loss that stands out."""
        if result.trained > 0 and self._outliers.flag(result.loss):
            named = list(samples[:SAMPLES_NAMED])
            message = f"Step {step}: loss {result.loss:.4f} stands out; samples {named}"
            self.watcher.event("loss_spike", message, level="warn", step=step, samples=[*named])

    def _warn_once(self, event: str, step: int, message: str) -> None:
        if event not in self._warned:
            self._warned.add(event)
            self.watcher.event(event, f"Step {step} {message}", level="warn", step=step)
