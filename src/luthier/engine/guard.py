"""Whether a step's numbers can be trusted, and telling people when they cannot."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.base.errors import RunError
from luthier.engine.meters import Outliers
from luthier.engine.step import StepResult
from luthier.engine.watcher import Watcher

SAMPLES_NAMED = 64


class Guard:
    """Looks at every step before its update is made."""

    def __init__(self, watcher: Watcher):
        self.watcher = watcher
        self._outliers = Outliers()
        self._warned_empty = False

    def sound(self, step: int, result: StepResult) -> bool:
        """Whether the gradient is made of numbers.

        Raises:
            RunError: `zero_gradients`, when there is a loss and not one weight would move.
        """
        if not result.finite:
            message = f"Step {step} is not finite (loss {result.loss}); its update is skipped"
            self.watcher.event("skipped_step", message, level="warn", step=step)
            return False
        if result.trained == 0 and not self._warned_empty:
            self._warned_empty = True
            message = f"Step {step} has no trained token; such steps change nothing"
            self.watcher.event("no_trained_tokens", message, level="warn", step=step)
        if result.trained > 0 and result.grad_norm == 0.0 and result.loss != 0.0:
            raise RunError(
                f"step {step}: every gradient is zero although the loss is {result.loss:.4g}",
                code="zero_gradients",
                fix="Nothing would be learned; this is a fault in the model's code or in Luthier, please report it",
            )
        return True

    def look(self, step: int, result: StepResult, samples: Sequence[int]) -> None:
        """Name the samples of a loss that stands out."""
        if result.trained > 0 and self._outliers.flag(result.loss):
            named = list(samples[:SAMPLES_NAMED])
            message = f"Step {step}: loss {result.loss:.4f} stands out; samples {named}"
            self.watcher.event("loss_spike", message, level="warn", step=step, samples=[*named])
