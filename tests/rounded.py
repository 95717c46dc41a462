"""Tiny models held in few bits, for the tests that compare them with the same rounded numbers in plain layers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.model import lowbit, methods
from luthier.model.config import Lora, Method, ModelConfig, Quant
from luthier.model.load import Model, load_model, load_tokenizer

CPU = torch.device("cpu")
BNB = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs pip install 'luthier[quant]'")
HQQ = pytest.mark.skipif(find_spec("hqq") is None, reason="needs pip install 'luthier[quant]'")
WAYS = {
    "nf4": Quant(bits=4),
    "fp4": Quant(bits=4, format="fp4", double_quant=False),
    "int8": Quant(bits=8),
    "hqq8": Quant(method="hqq", bits=8),
    "hqq4": Quant(method="hqq"),
    "hqq3": Quant(method="hqq", bits=3, group_size=32),
    "hqq2": Quant(method="hqq", bits=2, group_size=16),
}
MAIN = ("nf4", "int8", "hqq4")


def ways(*names: str) -> Any:
    """Parameters of a test: the settings of each, skipped where its library is missing."""
    return [pytest.param(WAYS[name], id=name, marks=HQQ if "hqq" in name else BNB) for name in names or WAYS]


WIDE = {"hidden_size": 64, "head_dim": 16, "initializer_range": 0.1}

LORAS = {
    "lora": Lora(rank=4, alpha=8),
    "dora": Lora(rank=4, alpha=8, dora=True),
    "pissa": Lora(rank=4, alpha=4, init="pissa"),
    "olora": Lora(rank=4, alpha=4, init="olora"),
    "two layers": Lora(rank=2, target=("q_proj", "down_proj"), modules_to_save=("lm_head",)),
}


def load(folder: Path, quant: Quant, dtype: str = "float32", *, trained: bool = True) -> Model:
    config = ModelConfig.model_validate({"path": str(folder), "dtype": dtype, "quant": quant})
    return load_model(config, CPU, tokenizer=load_tokenizer(config), trained=trained)


def twin(folder: Path, quant: Quant) -> Model:
    """The same rounded numbers in plain layers."""
    model = load(folder, quant)
    lowbit.write_out(model.base, torch.float32)
    return model


def adapted(model: Model, method: Method, adapters: tuple[str, ...] = ()) -> Model:
    torch.manual_seed(0)
    methods.apply(model, method, adapters)
    with torch.no_grad():
        for name, weight in model.trained().items():
            if "lora_B" in name and not weight.any():
                weight.normal_(std=0.05)
    return model


def batch() -> Batch:
    rng = np.random.default_rng(0)
    groups = [
        Group((Tokens(rng.integers(3, 390, n).astype(np.int32), np.array([0.0] + [1.0] * (n - 1), np.float32)),))
        for n in (9, 17, 5)
    ]
    return collate(groups, range(3))


def gradients(model: Model) -> dict[str, Tensor]:
    model.network.train()
    for weight in model.trained().values():
        weight.grad = None
    (-model.logprobs(batch())[0].sum()).backward()
    return {name: weight.grad for name, weight in model.trained().items() if weight.grad is not None}


def logits(network: Any) -> Tensor:
    network.eval()
    with torch.no_grad():
        return network(torch.tensor([[5, 80, 33, 7, 200, 41, 9]])).logits


def apart(left: Tensor, right: Tensor) -> float:
    return float((left.float() - right.float()).norm() / right.float().norm())
