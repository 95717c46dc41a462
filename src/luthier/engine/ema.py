"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """weights = decay * weights + (1 - decay) * live, after every update.

    Args:
        trained: the live weights by name; the average starts from them.
    """

    def __init__(self, trained: Mapping[str, Tensor], decay: float):
        self.decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in trained.items()}

    @torch.no_grad()
    def update(self, trained: Mapping[str, Tensor]) -> None:
        for name, weight in trained.items():
            self.weights[name].lerp_(weight, 1.0 - self.decay)

    @torch.no_grad()
    def exchange(self, trained: Mapping[str, Tensor]) -> None:
        """Put the average into the live weights and keep what was there; a second time puts both back."""
        for name, weight in trained.items():
            live = weight.detach().clone()
            weight.copy_(self.weights[name])
            self.weights[name].copy_(live)
