"""What is done around each optimizer step besides the step: other weights begin to move, ranks are taken away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Turns(Protocol):
    """What happens before and after each step.  Steps are counted from 0."""

    def before(self, step: int) -> bool:
        """Get ready for a step, the same way however often it is asked; whether weights came to rest."""
        ...

    def after(self, step: int) -> None:
        """The weights have moved; their gradients are still there."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What has to be remembered besides the weights; the same on every process."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        ...
