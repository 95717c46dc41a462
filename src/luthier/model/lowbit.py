"""A frozen base in few bits: its linear layers are rounded once, and their products are those of the rounded weights.

What is rounded never moves; adapters over it do (QLoRA, Dettmers et al. 2023).  Forward and backward use the same
rounded weight, written out for the moment of each product, so a layer costs its few bits and gradients are exact.

Legend: O output width, I input width, T rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.base.errors import ModelError
from luthier.base.sizes import told
from luthier.model import bnb, rounding
from luthier.model.config import Quant
from luthier.model.folder import first_line
from luthier.model.rounding import Rounding

# Relative error of a whole weight that no sound rounding reaches, by bits; normal weights stay below half of it.
_WORST = {8: 0.1, 4: 0.35, 3: 0.55, 2: 0.9}


class LowBitLinear(nn.Linear):
    """A frozen linear layer whose weight is held rounded.

    It has no parameter `weight` but gives it on demand, so that whoever reads it gets the numbers that are used.
    """

    def __init__(self, how: Rounding, held: Mapping[str, Tensor], like: Any, dtype: torch.dtype):
        nn.Module.__init__(self)
        sides = like.weight.shape if isinstance(like, Conv1D) else (like.in_features, like.out_features)
        self.in_features, self.out_features = sides
        self.how, self.dtype = how, dtype
        self.fused = True
        """Whether the library's own kernel for the product may be used."""
        for name, tensor in held.items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", like.bias)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rounded weight_OI in the arithmetic's type, made anew at each call."""
        return self.dense(self.dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The rounded weight_OI in any type."""
        return self.how.dense(self.held, self.out_features, self.in_features, dtype)

    @property
    def held(self) -> dict[str, Tensor]:
        """The tensors that stand for the weight."""
        return {name: tensor for name, tensor in self._buffers.items() if tensor is not None}

    def forward(self, input: Tensor) -> Tensor:
        """x W^T + b, [..., I] -> [..., O] in the type of the input, or of autocast."""
        kind = input.device.type
        x = input.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype)
        return _Product.apply(x, self)


class _Product(torch.autograd.Function):
    """Keeps nothing: the backward pass writes the weight out again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LowBitLinear) -> Tensor:
        ctx.layer = layer
        bias: Any = layer.bias
        bias = None if bias is None else bias.to(x.dtype)
        y = layer.how.product(layer.held, layer.out_features, x, bias) if layer.fused else None
        return linear(x, layer.dense(x.dtype), bias) if y is None else y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dy @ ctx.layer.dense(dy.dtype), None


@dataclass
class _Tally:
    """What was rounded, what was not, and how its products are made."""

    weights: int = 0
    size: int = 0
    plain_size: int = 0
    """bytes of what was rounded, and of the same weights in the arithmetic's type"""
    kept: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """names of layers that could not be rounded, by reason"""
    fused: dict[tuple[int, int], bool] = field(default_factory=dict[tuple[int, int], bool])
    """whether the library's own kernel gives the right product, by shape"""

    def add(self, layer: LowBitLinear) -> None:
        shape = layer.out_features, layer.in_features
        if shape not in self.fused:
            self.fused[shape] = _kernel_agrees(layer)
        layer.fused = self.fused[shape]
        count = layer.in_features * layer.out_features
        self.weights += count
        self.plain_size += count * layer.dtype.itemsize
        self.size += sum(tensor.nbytes for tensor in layer.held.values())

    def note(self, bits: str) -> str:
        sizes = f"{told(self.size)} instead of {told(self.plain_size)}"
        note = f"Base held in {bits}: {self.weights / 1e6:,.1f}M weights take {sizes}"
        for reason, names in self.kept.items():
            note += f"; {len(names)} layers are not rounded, {reason}"
        return note


def quantize(network: PreTrainedModel, quant: Quant, device: torch.device, dtype: torch.dtype) -> str:
    """Round every linear layer but the head, in place and one at a time on `device`.

    Args:
        dtype: the arithmetic's type; weights are rounded from it.

    Returns:
        One sentence about what is held in which size.

    Raises:
        MissingExtra: the library is not installed.
        ModelError: it cannot work here, gives wrong numbers, or there is no layer it can round.
    """
    how = rounding.rounding(quant, device)
    tally = _Tally()
    head = network.get_output_embeddings()
    # By name, so that nothing keeps a layer alive that has been replaced.
    for name in [name for name, _ in network.named_modules()]:
        module = network.get_submodule(name)
        if not _takes_rounding(name, module, head, quant):
            continue
        weight: Any = module.weight
        weight_OI = (weight.t() if isinstance(module, Conv1D) else weight).detach().to(device, dtype)
        obstacle = how.obstacle(*weight_OI.shape)
        if obstacle:
            tally.kept.setdefault(obstacle, []).append(name)
            continue
        layer = _rounded(how, weight_OI, module, name, quant)
        network.set_submodule(name, layer)
        tally.add(layer)
    if not tally.weights:
        why = "; ".join(tally.kept) or "it has no linear layers besides its head"
        raise ModelError(
            f"nothing in this model can be held in {quant.bits} bits: {why}",
            where="--quant_bits",
            fix="Use another --quant_method, or leave --quant_bits out",
        )
    kind = f"{quant.method} {quant.format}" if quant.method == "bnb" and quant.bits == 4 else quant.method
    return tally.note(f"{quant.bits} bits ({kind})")


def sketch(network: PreTrainedModel, quant: Quant, dtype: torch.dtype) -> None:
    """What `quantize` would leave of a network on the meta device, where there are no numbers to round, in place."""
    how = rounding.Blank(quant)
    head = network.get_output_embeddings()
    for name, module in list(network.named_modules()):
        if _takes_rounding(name, module, head, quant):
            like: Any = module
            rows, columns = like.weight.t().shape if isinstance(module, Conv1D) else like.weight.shape
            if how.obstacle(rows, columns) is None:
                network.set_submodule(name, LowBitLinear(how.like, how.held(rows, columns, dtype), like, dtype))


def check(quant: Quant, device: torch.device) -> None:
    """Find out what can be found out without a model.

    Raises:
        MissingExtra, ModelError: what is asked for cannot work here.
    """
    if quant.on:
        rounding.rounding(quant, device)


def adopt(network: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str:
    """Take over layers that bitsandbytes rounded before they were stored, in place; otherwise as `quantize`."""
    rounding.rounding(Quant(bits=4), device)  # whether its kernels work here
    tally = _Tally()
    for name in [name for name, _ in network.named_modules()]:
        module = network.get_submodule(name)
        found = bnb.stored(module)
        if found is not None:
            layer = LowBitLinear(*found, module, dtype).to(device)
            network.set_submodule(name, layer)
            tally.add(layer)
    return tally.note("the bits it is stored in (bitsandbytes)")


def holds(network: nn.Module) -> bool:
    """Whether any layer is held rounded."""
    return any(isinstance(module, LowBitLinear) for module in network.modules())


def tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that stand for rounded weights, by name."""
    for name, module in network.named_modules():
        if isinstance(module, LowBitLinear):
            for part, tensor in module.held.items():
                yield f"{name}.{part}", tensor


def count_weights(network: nn.Module) -> int:
    """Parameters of a model, rounded weights counted as what they stand for."""
    rounded = sum(m.in_features * m.out_features for m in network.modules() if isinstance(m, LowBitLinear))
    return rounded + sum(parameter.numel() for parameter in network.parameters())


def written_out(layer: LowBitLinear, dtype: torch.dtype) -> nn.Linear:
    """A plain layer with the rounded numbers."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(layer.dense(dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain


def write_out(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make every layer held rounded a plain one with the rounded numbers, in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LowBitLinear):
            network.set_submodule(name, written_out(module, dtype))


def _takes_rounding(name: str, module: nn.Module, head: nn.Module | None, quant: Quant) -> bool:
    skipped = any(f".{part}." in f".{name}." for part in quant.skip)
    return module is not head and type(module) in (nn.Linear, Conv1D) and not skipped


def _rounded(how: Rounding, weight_OI: Tensor, like: Any, name: str, quant: Quant) -> LowBitLinear:
    """The layer, once its numbers are known to be near the weight's."""
    where = f"--quant_method {quant.method}"
    try:
        layer = LowBitLinear(how, how.pack(weight_OI), like, weight_OI.dtype).to(weight_OI.device)
        error = (layer.dense(torch.float32) - weight_OI).norm() / weight_OI.float().norm().clamp(min=1e-30)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as problem:
        raise ModelError(
            f"{name} cannot be rounded on this {weight_OI.device.type} ({first_line(problem)})",
            where=where,
            code="no_kernel",
            fix="Use another --quant_method, or none",
        ) from problem
    if not float(error) <= _WORST[quant.bits or 4]:
        raise ModelError(
            f"{name} comes out wrong: its {quant.bits} bits are {float(error):.0%} away from the weight",
            where=where,
            code="wrong_rounding",
            fix="Use another --quant_method, or leave it as it is with --model.quant.skip",
        )
    return layer


@torch.no_grad()
def _kernel_agrees(layer: LowBitLinear) -> bool:
    """Whether the library's own kernel gives the product with the weight written out, for one row and for several."""
    tolerance = 1e-4 if layer.dtype == torch.float32 else 2e-2
    device = next(iter(layer.held.values())).device
    x_TI = torch.linspace(-1, 1, 32 * layer.in_features, device=device).cos().view(32, -1).to(layer.dtype)
    for rows in (1, 32):
        try:
            y = layer(x_TI[:rows])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # the kernel was not built for this device, or not for this shape
            return False
        layer.fused = False
        expected = layer(x_TI[:rows])
        layer.fused = True
        if not float((y - expected).float().norm()) <= tolerance * float(expected.float().norm()):
            return False
    return True
