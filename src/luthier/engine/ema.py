"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """weights = decay * weights + (1 - decay) * live, after every update.

    Args:
        trained: the live weights by name; the average starts from them.
        decay: None averages none of them.
    """

    def __init__(self, trained: Mapping[str, Tensor], decay: float | None):
        self._live, self._decay = (trained, decay) if decay else ({}, 0.0)
        self.weights = {name: weight.detach().clone() for name, weight in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, weight in self._live.items():
            self.weights[name].lerp_(weight, 1.0 - self._decay)

    @contextmanager
    def in_use(self) -> Generator[None]:
        """In the block the live weights are the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._live.items():
            live = weight.detach().clone()
            weight.copy_(self.weights[name])
            self.weights[name].copy_(live)
