"""What an objective owes the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from luthier.data.batch import Batch
from luthier.model.load import Model


@dataclass(frozen=True, slots=True)
class Terms:
    """What one batch adds to the step's loss and metrics."""

    losses: dict[str, Tensor]
    """Each loss term summed over the batch, with its graph.  [] each"""
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor]])
    """Each metric as (sum, count), without graph.  [] each"""
    outputs: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What metrics of a whole set are made from, without graph: rows of any number, the same names in each batch."""


class Objective(Protocol):
    """One training task.  The engine never learns its name."""

    def prepare(self, model: Model, step: Sequence[Batch]) -> None:
        """Without grad, over the whole optimizer step, before anything is counted."""
        ...

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The denominator of each loss term.  [] each"""
        ...

    def sums(self, model: Model, batch: Batch) -> Terms:
        """Each loss term summed over the batch.  An empty batch gives 0 with a graph through every trained weight."""
        ...

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics that are no sums, from the outputs of all batches of a set, in no particular order.

        One with the name of a loss term is that term's mean over the set.  Only asked for where there are outputs.
        """
        ...
