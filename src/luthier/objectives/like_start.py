"""Any objective over a language model with a term that keeps the model's predictions near those it began with.

    kl  = KL(p_start || p) at the tokens that are trained
    lwf = T^2 KL(p_start^(1/T) || p^(1/T)) at every token of the data

The first is the usual anchor of fine-tuning; the second is Learning without Forgetting (Li and Hoiem 2016): the old
model's answers to the new inputs.  Both are summed over their tokens and divided by their number in the step.

Legend: T packed tokens, R the rows that count, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint

from luthier.data.batch import Batch
from luthier.engine.objective import Objective, Terms
from luthier.model.load import Model
from luthier.model.logprobs import chunk_rows
from luthier.objectives.start import Start


@dataclass(frozen=True, slots=True)
class Anchor:
    """One divergence from the start."""

    name: str
    weight: float
    temperature: float = 1.0
    everywhere: bool = False
    """At every token, not only at those that are trained."""

    def rows(self, batch: Batch) -> Tensor:
        """int64 [R], the positions that count."""
        return torch.arange(batch.tokens, device=batch.ids_T.device) if self.everywhere else batch.trained_R


class LikeStart:
    """An objective held near the start by divergences.

    Args:
        inner: the objective.
        start: the model as it was.
    """

    def __init__(self, inner: Objective, start: Start, anchors: Sequence[Anchor]):
        self.inner, self.start, self.anchors = inner, start, anchors
        self._training = False

    def prepare(self, model: Model, step: Sequence[Batch]) -> None:
        self._training = model.network.training
        self.inner.prepare(model, step)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        counts = self.inner.counts(batch)
        if not self._training:
            return counts  # evaluation stays comparable
        device = batch.ids_T.device
        rows = {anchor.name: len(anchor.rows(batch)) for anchor in self.anchors}
        return counts | {name: torch.tensor(n, dtype=torch.float64, device=device) for name, n in rows.items()}

    def sums(self, model: Model, batch: Batch) -> Terms:
        if not self._training:
            return self.inner.sums(model, batch)
        before_TD = self.start.hidden(batch)
        with model.sharing_hidden(batch) as hidden_TD:
            terms = self.inner.sums(model, batch)
            added = {
                anchor.name: anchor.weight * self._divergence(model, hidden_TD, before_TD, anchor, batch)
                for anchor in self.anchors
            }
        return replace(terms, losses=terms.losses | added)

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        return self.inner.measure(outputs)

    def _divergence(self, model: Model, hidden_TD: Tensor, before_TD: Tensor, anchor: Anchor, batch: Batch) -> Tensor:
        """Sum of the divergence over the rows that count, with a graph.  []"""
        rows = anchor.rows(batch)
        at_once = chunk_rows(model.vocabulary, model.device) // 2
        total = hidden_TD.sum() * 0.0
        for part in rows.split(max(1, at_once)):
            targets_RV = (self.start.logits(before_TD[part]).float() / anchor.temperature).log_softmax(-1)
            total = total + checkpoint(
                _kl_sum, model, hidden_TD[part], targets_RV, anchor.temperature, use_reentrant=False
            )
        return total * anchor.temperature**2


def _kl_sum(model: Model, hidden_RD: Tensor, targets_RV: Tensor, temperature: float) -> Tensor:
    """Sum over rows of KL(exp(targets) || softmax(logits / temperature)).  []"""
    logprobs_RV = (model.logits(hidden_RD).float() / temperature).log_softmax(-1)
    return kl_div(logprobs_RV, targets_RV, reduction="sum", log_target=True)
