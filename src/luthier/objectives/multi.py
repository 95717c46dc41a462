"""Several objectives over one backbone: each with its own data, head, loss and metrics.

    loss = sum over tasks k of weight_k loss_k

where loss_k is the objective's own, divided by its own count over the whole step.  A micro-batch is of one task; which
samples a step holds is said by the mixture (`data.order.blended`), not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from luthier.base.console import Console
from luthier.data.batch import Batch, Group, collate
from luthier.data.tokens import Groups, Kinds
from luthier.engine.objective import Terms
from luthier.model.load import Model
from luthier.objectives.findings import Findings
from luthier.objectives.setting import Part


@dataclass(frozen=True)
class Multi:
    """The tasks of a run, each a part with a name.

    Args:
        weights: what each task's loss counts.
    """

    tasks: tuple[Part, ...]
    weights: tuple[float, ...]

    def vary(self, group: Group, rng: np.random.Generator) -> Group:
        """What the group's own objective does."""
        vary = self.tasks[group.kind].objective.vary
        return group if vary is None else replace(vary(group, rng), kind=group.kind)

    @property
    def beside(self) -> Sequence[Model]:
        """Those of all objectives."""
        return [model for part in self.tasks for model in part.objective.beside]

    def begin(self, sets: Sequence[Groups], console: Console) -> None:
        """Each objective begins with its own sets."""
        for kind, part in enumerate(self.tasks):
            part.objective.begin([mine.sets[kind] for mine in sets if isinstance(mine, Kinds)], console)

    def prepare(self, model: Model, step: Sequence[Batch]) -> None:
        for kind, part in enumerate(self.tasks):
            mine = [batch for batch in step if batch.kind == kind]
            if mine:
                part.objective.prepare(model.under(part.name), mine)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        mine = self.tasks[batch.kind].objective.counts(batch)
        named = {self._named(batch.kind, term): count for term, count in mine.items()}
        zero = torch.zeros((), dtype=torch.float64, device=batch.ids_T.device)
        return {name: named.get(name, zero) for name in self._terms}

    def sums(self, model: Model, batch: Batch) -> Terms:
        part, weight = self.tasks[batch.kind], self.weights[batch.kind]
        model = model.under(part.name)
        terms = part.objective.sums(model, batch)
        zero = model.anchor()
        losses = dict.fromkeys(self._terms, zero)
        metrics = {f"{part.name}/{metric}": pair for metric, pair in terms.metrics.items()}
        counts = part.objective.counts(batch) if weight != 1 else {}
        for term, summed in terms.losses.items():
            losses[self._named(batch.kind, term)] = summed * weight + zero
            if weight != 1:  # the curve that people know, beside what it counts here
                metrics[f"{part.name}/{self._short(batch.kind, term)}"] = summed.detach(), counts[term]
        outputs = {f"{part.name}/{output}": rows for output, rows in terms.outputs.items()}
        return Terms(losses, metrics, outputs)

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind, part in enumerate(self.tasks):
            mine = _of(part, outputs)
            for metric, value in part.objective.measure(mine).items() if mine else ():
                if metric in self._own_terms[kind]:
                    found[self._named(kind, metric)] = value * self.weights[kind]
                    metric = self._short(kind, metric)
                found[f"{part.name}/{metric}"] = value
        return found

    def findings(self, outputs: Mapping[str, Tensor]) -> dict[str, Findings]:
        """Those of each task, by its name."""
        return {
            name or part.name: found
            for part in self.tasks
            for name, found in part.objective.findings(_of(part, outputs)).items()
        }

    @cached_property
    def _own_terms(self) -> tuple[tuple[str, ...], ...]:
        """The loss terms of each objective."""
        return tuple(tuple(part.objective.counts(collate([], []))) for part in self.tasks)

    @cached_property
    def _terms(self) -> tuple[str, ...]:
        """The names of all loss terms: a step tells every one of them, whatever samples it holds."""
        return tuple(self._named(kind, term) for kind, terms in enumerate(self._own_terms) for term in terms)

    def _named(self, kind: int, term: str) -> str:
        weighted = "" if self.weights[kind] == 1 else "weighted_"
        return f"{self.tasks[kind].name}/{weighted}{self._short(kind, term)}"

    def _short(self, kind: int, term: str) -> str:
        return "loss" if len(self._own_terms[kind]) == 1 else term


def _of(part: Part, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A task's own outputs, under the names it gave them."""
    before = f"{part.name}/"
    return {name.removeprefix(before): rows for name, rows in outputs.items() if name.startswith(before)}
