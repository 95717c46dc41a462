"""Objectives made without a run: a tokenizer, a model and rows are enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from luthier.base.records import Record, Where
from luthier.data.batch import Batch, Group, collate
from luthier.data.config import DataConfig
from luthier.engine.mesh import Mesh
from luthier.engine.step import StepResult, begin
from luthier.model import methods
from luthier.model.config import Full, Lora, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.config import Objective
from luthier.objectives.registry import build
from luthier.objectives.setting import Learnable, Setting

HERE = Where("rows.jsonl", 1)
CPU = Mesh(torch.device("cpu"))


def learnable(config: Objective, folder: Path, max_length: int = 64) -> Learnable:
    """The objective for a model folder."""
    model = ModelConfig(path=str(folder))
    data = DataConfig(datasets=("rows.jsonl",), overlong="truncate")
    return build(config, Setting(load_tokenizer(model), model, data, max_length))


def opened(objective: Learnable, folder: Path, method: Full | Lora | None = None, dropout: bool = True) -> Model:
    """The model with the objective's head, ready to train."""
    config = ModelConfig(path=str(folder))
    torch.manual_seed(0)
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True, head=objective.head)
    methods.apply(model, method or Full())
    model.train_mode()
    if not dropout:
        model.network.eval()
    return model


def encoded(objective: Learnable, records: Sequence[Record], seed: int = 0) -> list[Group]:
    """Groups as a step sees them."""
    groups = [objective.encode(record) for record in records]
    assert all(group is not None for group in groups)
    vary = objective.vary or (lambda group, rng: group)
    return [vary(group, np.random.default_rng([seed, n])) for n, group in enumerate(groups) if group is not None]


def cut(groups: Sequence[Group], bins: Sequence[Sequence[int]]) -> list[Batch]:
    return [collate([groups[index] for index in members], list(members)) for members in bins]


def measure(model: Model, objective: Learnable, batches: Sequence[Batch]) -> tuple[StepResult, torch.Tensor]:
    """One step's numbers, and its gradient in one row."""
    for weight in model.trained().values():
        weight.grad = None
    torch.manual_seed(5)
    result = begin(model, objective, batches, CPU, max_norm=0.0).read()
    zero = torch.zeros_like
    flat = [(zero(weight) if weight.grad is None else weight.grad).reshape(-1) for weight in model.trained().values()]
    return result, torch.cat(flat)


def same(first: tuple[StepResult, torch.Tensor], second: tuple[StepResult, torch.Tensor], within: float = 1e-5) -> None:
    assert abs(second[0].loss - first[0].loss) <= within * abs(first[0].loss)
    assert first[0].trained == second[0].trained
    assert float((first[1] - second[1]).norm() / first[1].norm()) < within
