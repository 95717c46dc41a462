"""FSDP2: each process holds a part of every weight, of its gradient and of its optimizer state.

A layer of the backbone is a unit: its weights are put together when it computes and let go afterwards.  What lies
outside the layers is one more unit, which stays whole from the backbone to the end of the backward pass: the head is
applied outside it, in chunks, and may share its weight with the embedding.

Parts are rows: process r of n holds rows r * ceil(R / n) to (r + 1) * ceil(R / n) of R, fewer or none at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

# There is no other name for the collectives that FSDP2 makes by default.
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from luthier.base.errors import DoesNotFit, ModelError, together
from luthier.model.causal import Model
from luthier.model.heads import Head, backbone

CAN_BEGIN_AGAIN = "reset_iter_state" in vars(FSDPModule)  # since torch 2.13


class Collectives:
    """Counts what FSDP2 exchanges in one pass, and leaves out what has already been exchanged in a failed one."""

    def __init__(self) -> None:
        self.made = 0
        self.done = 0

    def make(self, collective: Callable[..., Any], *args: Any, **named: Any) -> Any:
        self.made += 1
        if self.made <= self.done:
            return None
        with together():
            return collective(*args, **named)


class _Gather(DefaultAllGather):
    def __init__(self, collectives: Collectives):
        self._collectives = collectives

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._collectives.make(super().__call__, *args, **named)


class _Reduce(DefaultReduceScatter):
    def __init__(self, collectives: Collectives):
        self._collectives = collectives

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._collectives.make(super().__call__, *args, **named)


class Sharded(nn.Module):
    """The backbone of a network whose weights are sharded, and what the engine needs to say to FSDP2.

    Attributes:
        once: whether gradients are exchanged once a step, and held whole by each process until then; done where
            that costs less than the weights it holds, as with adapters.
    """

    def __init__(self, network: PreTrainedModel, head: Head):
        super().__init__()
        self.network = network
        self._head = head
        self.once = False
        self.collectives = Collectives()

    def forward(self, **inputs: Any) -> tuple[Tensor]:
        """What the backbone is called with -> its last hidden state."""
        hidden: Tensor = backbone(self.network, self._head)(**inputs)[0]
        if torch.is_grad_enabled() and not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_()  # only the head moves; its backward pass starts FSDP2's own
        # FSDP2 hangs its backward pass on this tensor, which it must not share with a view of it.
        return (hidden.clone() if hidden._is_view() else hidden,)

    def reduce(self, *, last: bool) -> None:
        """Before each micro-batch of a step: exchange gradients after it, or add them up here."""
        unit: Any = self
        if self.once:
            unit.set_requires_gradient_sync(last)

    def rest(self) -> None:
        """Let go of weights that are still whole after a pass without a backward pass; they would go stale."""
        unit: Any = self
        unit.reshard()

    def begin(self) -> None:
        """Before each pass, so that all processes exchange the same whatever came before."""
        self.rest()
        self.collectives.made = self.collectives.done = 0

    def begin_again(self, why: str) -> None:
        """After a pass broken off for `why`: the next one exchanges only what the other processes still wait for.

        Raises:
            DoesNotFit: this version of torch cannot take up a sharded pass again.
        """
        if not CAN_BEGIN_AGAIN:
            raise DoesNotFit(f"a sharded pass does not fit ({why}); torch 2.13 could have halved the micro-batches")
        unit: Any = self
        unit.reset_iter_state()
        self.collectives.made, self.collectives.done = 0, self.collectives.made


def shard(model: Model, device: torch.device) -> None:
    """Split the model's weights over all processes, in place, and move each one's part to `device`.

    Weights that move become float32 and are computed with in the arithmetic's type; gradients are summed in float32.
    Every process must hold the same weights, and call this.

    Raises:
        ModelError: the decoder's layers cannot be found.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    compute = None if model.dtype == torch.float32 else model.dtype
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32 if compute else None)
    sharded = Sharded(model.base, model.kind)
    for unit in (*_layers(model), sharded):
        for weight in unit.parameters():
            if weight.requires_grad and weight.dtype != torch.float32:
                weight.data = weight.data.float()
        split: Any = fully_shard(unit, mesh=mesh, mp_policy=policy)
        split.set_gradient_divide_factor(1.0)
        split.set_force_sum_reduction_for_comms(True)
        split.set_custom_all_gather(_Gather(sharded.collectives))
        split.set_custom_reduce_scatter(_Reduce(sharded.collectives))
    model.split(sharded, device)
    gradients = sum(4 * weight.numel() for weight in model.trained().values())
    sharded.once = gradients <= sum(held(weight).nbytes for weight in model.network.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part; all must ask at the same time."""
    if not isinstance(tensor, DTensor):
        return tensor
    spread: Any = tensor.detach()
    with together():
        return spread.full_tensor()


def part(value: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this process holds of `like`, in the same form; no other process is asked."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    mesh = like.device_mesh
    rows = -(-value.shape[0] // mesh.size())
    first = rows * mesh.get_local_rank()
    return DTensor.from_local(
        value[first : first + rows].to(like.device),
        mesh,
        like.placements,
        run_check=False,
        shape=value.shape,
        stride=value.stride(),
    )


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _layers(model: Model) -> list[nn.Module]:
    decoder = backbone(model.base, model.kind)
    count = model.base.config.get_text_config().num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(
        f"the layers of {type(model.base).__name__} cannot be found", where="--fsdp", fix="Train without sharding"
    )
