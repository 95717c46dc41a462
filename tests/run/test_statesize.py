"""What is said of an optimizer's state beforehand is what it has after a step: names, shapes, types."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from luthier.engine.config import OptimConfig, OptimizerName
from luthier.engine.optim import Optimizer
from luthier.run.statesize import sketch_state, state_bytes

NAMES = [name for name in get_args(OptimizerName) if not name.startswith("paged")]  # those want a GPU


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_state_is_foretold(name: str, tied: bool) -> None:
    if name.endswith("8bit"):
        pytest.importorskip("bitsandbytes")
    shapes = {"embed_tokens.weight": (300, 32), "layers.0.weight": (64, 96), "layers.0.bias": (96,), "tiny": (4, 4)}
    named = {key: nn.Parameter(torch.ones(shape)) for key, shape in shapes.items()}
    config = OptimConfig.model_validate({"name": name, "learning_rate": 1e-3})
    optimizer = Optimizer(named, config, lambda _: 1.0, tied=tied)
    for weight in named.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step(1.0)
    found = {key: (tuple(value.shape), value.dtype) for key, value in optimizer.state().items()}
    foretold = sketch_state(named, config, tied=tied)
    assert {key: (tuple(value.shape), value.dtype) for key, value in foretold.items()} == found
    assert state_bytes(named, config, tied=tied) == sum(value.nbytes for value in optimizer.state().values())


def test_paged_state_is_not_on_the_device() -> None:
    config = OptimConfig.model_validate({"name": "paged_adamw_8bit"})
    named = {"layers.0.weight": nn.Parameter(torch.ones(64, 96))}
    assert state_bytes(named, config) == 0
    assert sum(value.nbytes for value in sketch_state(named, config).values()) > 2 * 64 * 96
