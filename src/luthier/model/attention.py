"""Attention over packed sequences: many sequences laid end to end in one row, none of them seeing another.

Legend: T packed tokens, S sequences, L tokens of one sequence, H query heads, K key/value heads, E head width.

The implementation is registered with transformers under the name `packed`.  A forward that brings a `packing`
argument is computed sequence by sequence (CPU) or by the variable-length kernel (CUDA); without one, as in
generation, `packed` is plain SDPA.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "packed"

# torch 2.11 infers grouped heads from the shapes, torch 2.13 wants to be told.
_VARLEN_GQA: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

# The kernel's backward pass indexes a padded buffer of this many numbers with 32 bits.
_KERNEL_LIMIT = 2**31

# What masks, attention scores or states a layer may have for `packed` to compute it exactly.
_EXACT_LAYERS = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the sequences of one packed row lie."""

    lengths: tuple[int, ...]
    """tokens of each sequence"""
    offsets_S1: Tensor
    """int32 [S + 1] on the model's device: start of each sequence, and the end"""
    windows: list[int | None] | None = None
    """filled, when a list, with the sliding window of each layer that computes attention"""

    @classmethod
    def of(cls, lengths: tuple[int, ...], offsets: tuple[int, ...], device: torch.device) -> Packing:
        """The packing of a batch with these lengths and offsets."""
        return cls(lengths, torch.tensor(offsets, dtype=torch.int32).to(device, non_blocking=True))


def packed_inputs(ids_T: Tensor, positions_T: Tensor, packing: Packing) -> dict[str, Any]:
    """What a decoder is called with to run packed.

    Nobody reads the mask.  transformers takes one of four axes for finished; given none it would look for sequences in
    the positions, and wait for the device to find them.
    """
    return {
        "input_ids": ids_T[None],
        "position_ids": positions_T[None],
        "packing": packing,
        "attention_mask": torch.empty(1, 1, 0, 0, device=ids_T.device),
        "use_cache": False,
    }


def obstacle(network: PreTrainedModel) -> str | None:
    """Why a model cannot run packed, or None.  A model that passes is still probed after loading."""
    config = network.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    if not network._supports_attention_backend:  # pyright: ignore[reportPrivateUsage]
        return "its attention cannot be exchanged"
    if network._is_stateful or layers - _EXACT_LAYERS:  # pyright: ignore[reportPrivateUsage]
        return "it has layers that are not plain attention"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps attention scores"
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention is not causal"
    return None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a packed row, in the calling convention of transformers.

    query: [1, H, T, E]; key, value: [1, K, T, E] -> [1, T, H, E].  sliding_window: tokens that a token sees,
    itself included.

    Raises:
        NotImplementedError: attention sinks or score caps, which are not computed here.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if packing.windows is not None:
        packing.windows.append(sliding_window)
    for name in ("s_aux", "softcap", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"packed attention does not compute {name}")
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else query.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.is_cuda and dtype != torch.float32 and dropout == 0.0 and query.shape[-1] == value.shape[-1] <= 256:
        return _by_kernel(query, key, value, packing, scaling, sliding_window), None
    return _by_sequence(query, key, value, packing, scaling, sliding_window, dropout), None


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None, window: int | None
) -> Tensor:
    sequences, (_, heads, tokens, width) = len(packing.lengths), query.shape
    if sequences > 1 and (tokens + 128 * sequences) * heads * (width + 31) // 32 * 32 >= _KERNEL_LIMIT:
        half = sequences // 2
        at = sum(packing.lengths[:half])
        first = Packing(packing.lengths[:half], packing.offsets_S1[: half + 1])
        second = Packing(packing.lengths[half:], packing.offsets_S1[half:] - at)
        parts = [
            _by_kernel(query[:, :, :at], key[:, :, :at], value[:, :, :at], first, scaling, window),
            _by_kernel(query[:, :, at:], key[:, :, at:], value[:, :, at:], second, scaling, window),
        ]
        return torch.cat(parts, dim=1)
    longest = max(packing.lengths)
    output_THE = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packing.offsets_S1,
        packing.offsets_S1,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **_VARLEN_GQA,
    )
    assert isinstance(output_THE, Tensor)
    return output_THE[None]


def _by_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scaling: float | None,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Sequences of equal length go through SDPA together; no score between two sequences is ever computed."""
    queries, keys, values = (heads.split(packing.lengths, dim=2) for heads in (query, key, value))
    members: dict[int, list[int]] = {}
    for index, length in enumerate(packing.lengths):
        members.setdefault(length, []).append(index)
    outputs: list[Tensor] = [query] * len(packing.lengths)
    for length, indices in members.items():
        windowed = window is not None and window < length
        together = scaled_dot_product_attention(
            torch.cat([queries[i] for i in indices]),
            _repeated([keys[i] for i in indices], query.shape[1]),
            _repeated([values[i] for i in indices], query.shape[1]),
            attn_mask=_window_mask(length, window, query.device) if windowed else None,
            dropout_p=dropout,
            is_causal=not windowed,
            scale=scaling,
        )
        for index, output in zip(indices, together.split(1), strict=True):
            outputs[index] = output
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _repeated(heads: list[Tensor], query_heads: int) -> Tensor:
    """Each of the [1, K, L, E] stacked to [n, H, L, E], every key/value head repeated for its group of queries."""
    stacked = torch.cat(heads)
    groups = query_heads // stacked.shape[1]
    return stacked.repeat_interleave(groups, dim=1) if groups > 1 else stacked


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """bool [L, L]: a token sees itself and the window - 1 tokens before it."""
    assert window is not None
    distance_LL = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance_LL >= 0) & (distance_LL < window)


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
