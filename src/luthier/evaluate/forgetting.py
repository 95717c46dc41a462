"""What a model could do before training and after it, on sets that are not what it is trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from luthier.data.loader import Share, evaluation_batches
from luthier.data.tokens import Groups
from luthier.engine.mesh import Mesh
from luthier.engine.objective import Objective
from luthier.engine.step import evaluate
from luthier.model.load import Model

Scores = dict[str, float]
"""`loss`, every metric of the objective, and for language `perplexity`."""


@dataclass(frozen=True, slots=True)
class Change:
    """One number on one set, before and after."""

    set: str
    metric: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """after - before"""
        return self.after - self.before


def judge(
    model: Model, objective: Objective, sets: Mapping[str, Groups], share: Share, mesh: Mesh
) -> dict[str, Scores]:
    """The objective's loss and metrics on each set, without dropout and without anything added against forgetting."""
    training = model.network.training
    model.eval_mode()
    found: dict[str, Scores] = {}
    for name, groups in sets.items():
        scores = evaluate(model, objective, evaluation_batches(groups, share), mesh).metrics
        if model.kind.kind == "causal":
            scores = {**scores, "perplexity": math.exp(min(scores["loss"], 700.0))}
        found[name] = scores
    model.network.train(training)
    return found


def changes(before: Mapping[str, Scores], after: Mapping[str, Scores]) -> list[Change]:
    """Every number that is there before and after, set by set."""
    return [
        Change(name, metric, value, after[name][metric])
        for name, scores in before.items()
        for metric, value in scores.items()
        if metric in after.get(name, {})
    ]
