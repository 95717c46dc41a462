"""Adapters that start inside the weight: PiSSA and OLoRA.

Both start from a part of the weight and would leave a changed base behind.  Here the base stays as it is: the
starting product is subtracted by a second, frozen adapter named `start`, and what is saved is the two side by side, a
plain LoRA of twice the rank that fits the original base exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.base.errors import ConfigError
from luthier.model.config import Lora

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

ADAPTER, START = "default", "start"

# An exact SVD of larger matrices takes minutes; there the leading part is found by subspace iteration.
_EXACT_SVD = 1024


def start_inside(network: PeftModel, method: Lora) -> None:
    """Adapters that hold the leading part of each weight, and their frozen opposites.

    PiSSA (Meng et al. 2024): singular vectors and square roots of the largest singular values.  OLoRA
    (Buyukakyuz 2024): the first columns of Q and rows of R.
    """
    add_start(network, method)
    for _, layer in lora_layers(network):
        base = base_weight(layer).detach().float()
        weight = base.T if layer.fan_in_fan_out else base  # pyright: ignore[reportAttributeAccessIssue]
        scale = layer.scaling[ADAPTER]
        b, a = _principal(weight, method.rank) if method.init == "pissa" else _orthogonal(weight, method.rank)
        if method.init == "pissa":
            b, a = b / math.sqrt(scale), a / math.sqrt(scale)
        for name, sign in ((ADAPTER, 1.0), (START, -1.0)):
            pair: tuple[Any, Any] = layer.lora_A[name], layer.lora_B[name]
            pair[0].weight.data.copy_(a)
            pair[1].weight.data.copy_(sign * b)


def add_start(network: PeftModel, method: Lora) -> None:
    """A second adapter of the same size, always on and never trained."""
    if method.dora:
        raise ConfigError(f"DoRA cannot start from {method.init}", where="method.init", fix="Use init default")
    from peft import LoraConfig

    first = network.peft_config[ADAPTER]
    assert isinstance(first, LoraConfig)
    network.add_adapter(START, replace(first, lora_dropout=0.0, modules_to_save=None))
    for name, layer in lora_layers(network):
        if layer.lora_embedding_A or min(base_weight(layer).shape) < method.rank:
            raise ConfigError(f"{name} cannot start from {method.init}", where="method.init", fix="Use init default")
        layer.set_adapter([ADAPTER, START])
        layer.lora_A[START].requires_grad_(False)
        layer.lora_B[START].requires_grad_(False)


def _principal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    if min(weight.shape) <= _EXACT_SVD:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(weight, rank, niter=16)
        vh = v.T
    root = s.sqrt()
    return u * root, root[:, None] * vh


def _orthogonal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(weight)
    return q[:, :rank], r[:rank]


def rank_axis(name: str) -> int:
    """The axis of an adapter's matrix that counts the rank: A is [rank, in], B is [out, rank]."""
    return 0 if "lora_A" in name else 1


def half(name: str, value: Tensor, rank: int | None, *, second: bool) -> Tensor:
    """The trained (first) or frozen (second) half of a saved matrix; tensors that are no such matrix as they are."""
    assert rank is not None
    if "lora_A" not in name and "lora_B" not in name:
        return value
    first, other = value.split(rank, dim=rank_axis(name))
    return (other if second else first).contiguous()


def lora_layers(network: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """Every layer that carries adapters, by name."""
    from peft.tuners.lora import LoraLayer

    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def base_weight(layer: LoraLayer) -> Tensor:
    """The weight that a layer's adapters adapt."""
    base: Any = layer.get_base_layer()
    return base.weight  # of a layer in few bits: the rounded weight, made at each call
