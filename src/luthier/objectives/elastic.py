"""Penalties for leaving the starting weights: L2-SP and EWC."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.data.batch import Group, collate
from luthier.engine.objective import Objective
from luthier.model.load import Model
from luthier.objectives.start import Start


def l2sp(model: Model, start: Start, weight: float) -> Tensor:
    """weight / 2 * sum_i (theta_i - start_i)^2 over everything that moves (Li et al. 2018).  []"""
    distances = [start.distance(name, moving).square().sum() for name, moving in model.trained().items()]
    return 0.5 * weight * torch.stack(distances).sum()


def ewc(model: Model, start: Start, fisher: dict[str, Tensor], weight: float) -> Tensor:
    """weight / 2 * sum_i F_i (theta_i - start_i)^2 (Kirkpatrick et al. 2017).  []"""
    terms = [(fisher[name] * start.distance(name, moving).square()).sum() for name, moving in model.trained().items()]
    return 0.5 * weight * torch.stack(terms).sum()


def fisher_information(model: Model, objective: Objective, groups: Iterable[Group]) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information of what moves, per unit of the loss's count (for language, per
    trained token): the sum over samples of the squared gradient of the sample's loss, over the sum of their counts.

    So with weight 1, EWC's penalty is to second order how much the mean loss on these samples would rise.
    """
    moving = model.trained()
    found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in moving.items()}
    counted = 0.0
    training = model.network.training
    model.eval_mode()
    for number, group in enumerate(groups):
        batch = collate([group], [number]).to(model.device)
        objective.prepare(model, [batch])
        counted += float(sum(objective.counts(batch).values()))
        loss = torch.stack(list(objective.sums(model, batch).losses.values())).sum()
        gradients: Any = torch.autograd.grad(loss, list(moving.values()), allow_unused=True)
        for name, gradient in zip(moving, gradients, strict=True):
            if gradient is not None:
                found[name] += gradient.float().square()
    model.network.train(training)
    return {name: value / max(counted, 1.0) for name, value in found.items()}


def kept_fisher(file: Path) -> dict[str, Tensor] | None:
    """What `keep_fisher` wrote."""
    return load_file(file) if file.exists() else None


def keep_fisher(file: Path, fisher: dict[str, Tensor]) -> None:
    """Write the information down, so that a resumed run uses the same."""
    save_file({name: value.cpu().contiguous() for name, value in fisher.items()}, file)
