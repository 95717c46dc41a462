"""A GPU's program where there is none: the same code over tensors without numbers, of which only the sizes are real.

While `as_on_gpu` lasts, what chooses between a GPU's way and a CPU's takes the GPU's, and what only a GPU computes
(products that are kept in float32, attention, the kernels of `model.kernels`) makes the tensors it would make.  Where
torch itself goes another way on a CPU, with scores or masks that a GPU never holds, it is led back.

Legend: T packed tokens, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

_COUNTED: ContextVar[bool] = ContextVar("counted", default=False)


@contextmanager
def as_on_gpu(on: bool = True) -> Generator[None]:
    """Count what runs inside as a GPU's program."""
    before = _COUNTED.set(on)
    try:
        # A function mode would not do: what is computed again in a backward pass would not be led.
        with replaced(functional, _LED) if on else nullcontext():
            yield
    finally:
        _COUNTED.reset(before)


def counting() -> bool:
    """Whether a program is counted as a GPU's."""
    return _COUNTED.get()


def on_gpu(device: torch.device) -> bool:
    """Whether a program runs on a GPU there, or is counted as one that does."""
    return device.type == "cuda" or _COUNTED.get()


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A mask of one byte a number; a CPU keeps it in the input's type."""
    return torch.native_dropout(input, p, train=True)[0] if training and p else input


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """A kernel that holds no scores, with or without dropout and mask, where there is one.

    There is none for odd widths, nor for a mask that is learned (T5's distances).
    """
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    odd = query.shape[-1] % 8 or query.shape[-1] > 256 or query.shape[-1] != value.shape[-1]
    if odd or (attn_mask is not None and attn_mask.requires_grad):
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    # The kernel adds a mask to the scores: one of yes and no becomes numbers, in each layer anew.
    return _Attention.apply(query, key, value, None if attn_mask is None else attn_mask.to(query.dtype))


_LED: dict[str, Callable[..., Tensor]] = {
    "dropout": _dropout,
    "scaled_dot_product_attention": _scaled_dot_product_attention,
}
"""torch's own functions as they keep tensors on a GPU."""


@contextmanager
def replaced(owner: Any, others: Mapping[str, Callable[..., Any]]) -> Generator[None]:
    """While this lasts, a module or class has other functions under these names."""
    usual = {name: getattr(owner, name) for name in others}
    try:
        for name, other in others.items():
            setattr(owner, name, other)
        yield
    finally:
        for name, function in usual.items():
            setattr(owner, name, function)


def attention(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
    """out_THE, with a graph that keeps what a GPU's attention keeps."""
    return _Attention.apply(q_THE, k_TGE, v_TGE, None)


class _Attention(torch.autograd.Function):
    """Flash attention: inputs, output and the sum of each row's softmax are kept, dq is added up in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums, mask)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, _, _, mask = ctx.saved_tensors
        added = query.new_empty(query.shape, dtype=torch.float32)
        found = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value))
        del added
        return *found, torch.empty_like(mask) if ctx.needs_input_grad[3] else None
