"""What an export costs: the perplexity of the same tokens before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.data.batch import Group, collate
from luthier.model.causal import Model

_BATCH = 8192  # tokens computed at once


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of the trained tokens of some rows: exp of their mean negative log-probability."""

    nats: float
    tokens: int

    @property
    def value(self) -> float:
        """NaN for no tokens."""
        return math.exp(self.nats / self.tokens) if self.tokens else math.nan


@torch.no_grad()
def perplexity(model: Model, groups: Sequence[Group]) -> Perplexity:
    """The perplexity of what would be trained in `groups`; weights count as 0 or 1."""
    model.eval_mode()
    nats, tokens = 0.0, 0
    batch: list[Group] = []
    for group in [*groups, None]:
        if batch and (group is None or sum(map(len, batch)) + len(group) > _BATCH):
            placed = collate(batch, range(len(batch))).to(model.device)
            logprobs_T, _ = model.logprobs(placed)
            nats -= float(logprobs_T.sum(dtype=torch.float64))
            tokens += int(placed.trained_R.numel())
            batch = []
        if group is not None:
            batch.append(group)
    return Perplexity(nats, tokens)
