"""Any objective with terms on the weights themselves added to its loss.

    loss = the objective's own + sum over penalties of penalty(weights)

A penalty does not depend on data: it is computed once a step by each process, with the first micro-batch, and counts
one for each, so that any split of the step gives one loss.  Evaluation leaves it out, so losses stay comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.engine.objective import Objective, Terms
from luthier.model.load import Model

Penalty = Callable[[], Tensor]
"""A scalar with a graph to the weights that move.  []"""


class Penalised:
    """An objective and penalties by name.

    Args:
        inner: the objective.
        penalties: what each adds to the loss, its weight included.
    """

    def __init__(self, inner: Objective, penalties: Mapping[str, Penalty]):
        self.inner, self.penalties = inner, dict(penalties)
        self._first: Batch | None = None

    def prepare(self, model: Model, step: Sequence[Batch]) -> None:
        self._first = step[0] if step and model.network.training else None
        self.inner.prepare(model, step)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        counts = self.inner.counts(batch)
        if self._first is None:
            return counts
        one = torch.tensor(float(batch is self._first), dtype=torch.float64, device=batch.ids_T.device)
        return counts | dict.fromkeys(self.penalties, one)

    def sums(self, model: Model, batch: Batch) -> Terms:
        terms = self.inner.sums(model, batch)
        if self._first is None:
            return terms
        if batch is self._first:
            added = {name: penalty() for name, penalty in self.penalties.items()}
        else:
            added = {name: model.anchor() for name in self.penalties}
        return replace(terms, losses=terms.losses | added)

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        return self.inner.measure(outputs)
