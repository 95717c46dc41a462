"""A GPU's program where there is none: the same code over tensors without numbers, of which only the sizes are real.

While `as_on_gpu` lasts, what chooses between a GPU's way and a CPU's takes the GPU's, and what only a GPU computes
(products that are kept in float32, attention, the kernels of `model.kernels`) makes the tensors it would make.

Legend: T packed tokens, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_COUNTED: ContextVar[bool] = ContextVar("counted", default=False)


@contextmanager
def as_on_gpu(on: bool = True) -> Generator[None]:
    """Count what runs inside as a GPU's program."""
    before = _COUNTED.set(on)
    try:
        yield
    finally:
        _COUNTED.reset(before)


def counting() -> bool:
    """Whether a program is counted as a GPU's."""
    return _COUNTED.get()


def on_gpu(device: torch.device) -> bool:
    """Whether a program runs on a GPU there, or is counted as one that does."""
    return device.type == "cuda" or _COUNTED.get()


def attention(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
    """out_THE, with a graph that keeps what a GPU's attention keeps."""
    return _Attention.apply(q_THE, k_TGE, v_TGE)


class _Attention(torch.autograd.Function):
    """Flash attention: inputs, output and the sum of each row's softmax are kept, dq is added up in float32."""

    @staticmethod
    def forward(ctx: Any, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
        sums_HT = q_THE.new_empty(q_THE.shape[1], q_THE.shape[0], dtype=torch.float32)
        ctx.save_for_backward(q_THE, k_TGE, v_TGE, out_THE, sums_HT)
        return out_THE

    @staticmethod
    def backward(ctx: Any, dout_THE: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q_THE, k_TGE, v_TGE, _, _ = ctx.saved_tensors
        added_THE = q_THE.new_empty(q_THE.shape, dtype=torch.float32)
        found = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q_THE, k_TGE, v_TGE))
        del added_THE
        return found
