"""Attention over packed sequences: many sequences laid end to end in one row, none of them seeing another.

Legend: T packed tokens, S sequences, L tokens of one sequence, H query heads, G key/value heads, E head width.

The implementation is registered with transformers under the name `packed`.  A forward that brings a `packing`
argument is computed sequence by sequence (CPU) or by the variable-length kernel (CUDA), one that brings a `step` over
what its lanes remember; without either `packed` is plain SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from luthier.model import counted
from luthier.model.lanes import Step

NAME = "packed"

# PyTorch's operators themselves, which have derivatives: `varlen_attn` and `sdpa_kernel`, which call them, take 0.5 and
# 0.1 ms of a host's time for each layer (0.04 here).
_flash: Any = torch.ops.aten._flash_attention_forward.default
_cudnn: Any = torch.ops.aten._scaled_dot_product_cudnn_attention.default

# The kernel's backward pass indexes a padded buffer of this many numbers with 32 bits.
_KERNEL_LIMIT = 2**31

# Lengths that cuDNN is given; it plans 50 ms for every new one.
_BUCKET = 256

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

    @property
    def even(self) -> bool:
        """Whether all sequences have one length, of a kind that comes again (kernels are planned for each shape)."""
        return len(set(self.lengths)) == 1 and self.lengths[0] % _BUCKET == 0

    @classmethod
    def of(cls, lengths: tuple[int, ...], offsets: tuple[int, ...], device: torch.device) -> Packing:
        """The packing of a batch with these lengths and offsets."""
        return cls(lengths, torch.tensor(offsets, dtype=torch.int32).to(device, non_blocking=True))


def step_inputs(ids_T: Tensor, step: Step) -> dict[str, Any]:
    """What a decoder is called with to run one step of several sequences; see `model.lanes`."""
    return {
        "input_ids": ids_T[None],
        "position_ids": step.positions_T[None],
        "step": step,
        "attention_mask": torch.empty(1, 1, 0, 0, device=ids_T.device),
        "use_cache": False,
    }


def caps_scores(settings: PreTrainedConfig) -> bool:
    """Whether a model caps its attention scores, which only transformers' eager attention computes.

    transformers 5.17 takes SDPA for such a model unless it is told otherwise, and leaves the cap out.
    """
    return getattr(settings.get_text_config(), "attn_logit_softcapping", None) is not None


def usual(settings: PreTrainedConfig, asked: str) -> str | None:
    """transformers' implementation that a model is made with; None is transformers' own choice."""
    return "eager" if asked == "eager" or caps_scores(settings) else None


def obstacle(network: PreTrainedModel) -> str | None:
    """Why a model cannot run packed, or None.  A model that passes is still probed after loading."""
    config = network.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    if not network._supports_attention_backend:  # pyright: ignore[reportPrivateUsage]
        return "its attention cannot be exchanged"
    if network._is_stateful or layers - _EXACT_LAYERS:  # pyright: ignore[reportPrivateUsage]
        return "it has layers that are not plain attention"
    if caps_scores(network.config):
        return "it caps attention scores"
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
    step: Step | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed row, in the calling convention of transformers.

    query: [1, H, T, E]; key, value: [1, G, T, E] -> [1, T, H, E].  sliding_window: tokens that a token sees,
    itself included, on the side or the sides that it sees.

    Raises:
        NotImplementedError: attention sinks or score caps, which are not computed here.
    """
    if packing is None and step is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if packing is not None and packing.windows is not None:
        packing.windows.append(sliding_window)
    for name in ("s_aux", "softcap", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"packed attention does not compute {name}")
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else query.dtype
    q_THE, k_TGE, v_TGE = (heads[0].transpose(0, 1).to(dtype) for heads in (query, key, value))
    if step is not None:
        layer: Any = module
        return step.attend(layer.layer_idx, q_THE, k_TGE, v_TGE, scaling, sliding_window)[None], None
    assert packing is not None
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    out_THE = within(
        q_THE, k_TGE, v_TGE, packing, scaling=scaling, window=sliding_window, dropout=dropout, causal=causal
    )
    return out_THE[None], None


def within(
    q_THE: Tensor,
    k_TGE: Tensor,
    v_TGE: Tensor,
    packing: Packing,
    *,
    scaling: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
    causal: bool = True,
) -> Tensor:
    """out_THE: attention within each sequence, by the fastest way that computes it.

    window: tokens that a token sees, itself included: before it, and without `causal` as many behind it.
    """
    if window is not None and window >= max(packing.lengths):
        window = None
    half, width = counted.on_gpu(q_THE.device) and q_THE.dtype != torch.float32, q_THE.shape[-1]
    if not half or dropout or width != v_TGE.shape[-1] or width > 256 or width % 8:
        return _by_sequence(q_THE, k_TGE, v_TGE, packing, scaling, window, dropout, causal)
    if counted.counting():
        return counted.attention(q_THE, k_TGE, v_TGE)
    if window is None and packing.even and width <= 128 and _has_cudnn(q_THE.device):
        return _by_cudnn(q_THE, k_TGE, v_TGE, packing, scaling, causal)
    return _by_varlen(q_THE, k_TGE, v_TGE, packing, scaling, window, causal)


def _has_cudnn(device: torch.device) -> bool:
    """Whether cuDNN's attention, the fastest on Hopper for sequences of one length, is there and may be used.

    Its gradients are not the same each time.
    """
    repeats = torch.are_deterministic_algorithms_enabled()
    return not repeats and torch.backends.cuda.cudnn_sdp_enabled() and _capability(device) >= (9, 0)


_capability = cache(torch.cuda.get_device_capability)


def _by_cudnn(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, packing: Packing, scaling: float | None, causal: bool
) -> Tensor:
    rows = len(packing.lengths), packing.lengths[0]
    heads = (part.unflatten(0, rows).transpose(1, 2) for part in (q_THE, k_TGE, v_TGE))
    out_SHLE = _cudnn(*heads, None, torch.is_grad_enabled(), 0.0, causal, scale=scaling)[0]
    return out_SHLE.transpose(1, 2).flatten(0, 1)


def _by_varlen(
    q_THE: Tensor,
    k_TGE: Tensor,
    v_TGE: Tensor,
    packing: Packing,
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> Tensor:
    sequences, (tokens, heads, width) = len(packing.lengths), q_THE.shape
    if sequences > 1 and (tokens + 128 * sequences) * heads * (width + 31) // 32 * 32 >= _KERNEL_LIMIT:
        half = sequences // 2
        at = sum(packing.lengths[:half])
        first = Packing(packing.lengths[:half], packing.offsets_S1[: half + 1])
        second = Packing(packing.lengths[half:], packing.offsets_S1[half:] - at)
        parts = [
            _by_varlen(q_THE[:at], k_TGE[:at], v_TGE[:at], first, scaling, window, causal),
            _by_varlen(q_THE[at:], k_TGE[at:], v_TGE[at:], second, scaling, window, causal),
        ]
        return torch.cat(parts)
    longest, offsets_S1 = max(packing.lengths), packing.offsets_S1
    before = -1 if window is None else window - 1
    after = 0 if causal else before
    lengths = offsets_S1, offsets_S1, longest, longest
    seen = {"window_size_left": before, "window_size_right": after}
    return _flash(q_THE, k_TGE, v_TGE, *lengths, 0.0, (before, after) == (-1, 0), False, scale=scaling, **seen)[0]


def _by_sequence(
    q_THE: Tensor,
    k_TGE: Tensor,
    v_TGE: Tensor,
    packing: Packing,
    scaling: float | None,
    window: int | None,
    dropout: float,
    causal: bool,
) -> Tensor:
    """Sequences of equal length go through SDPA together; no score between two sequences is ever computed."""
    lengths, heads = packing.lengths, (q_THE, k_TGE, v_TGE)
    attend = partial(_rows, scaling=scaling, window=window, dropout=dropout, causal=causal)
    if len(set(lengths)) == 1:
        return attend(*(part.unflatten(0, (-1, lengths[0])) for part in heads)).flatten(0, 1)
    queries, keys, values = (part.split(lengths) for part in heads)
    members: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        members.setdefault(length, []).append(index)
    outputs: list[Tensor] = [q_THE] * len(lengths)
    for indices in members.values():
        out_nLHE = attend(*(torch.stack([part[i] for i in indices]) for part in (queries, keys, values)))
        for index, output_LHE in zip(indices, out_nLHE.unbind(), strict=True):
            outputs[index] = output_LHE
    return torch.cat(outputs)


def _rows(
    q_nLHE: Tensor,
    k_nLGE: Tensor,
    v_nLGE: Tensor,
    *,
    scaling: float | None,
    window: int | None,
    dropout: float,
    causal: bool,
) -> Tensor:
    """out_nLHE: attention within each of n sequences of one length."""
    length, heads = q_nLHE.shape[1:3]
    windowed = window is not None and window < length
    groups = heads // k_nLGE.shape[2]
    k_nGLE, v_nGLE = k_nLGE.transpose(1, 2), v_nLGE.transpose(1, 2)
    return nn.functional.scaled_dot_product_attention(
        q_nLHE.transpose(1, 2),
        k_nGLE.repeat_interleave(groups, dim=1) if groups > 1 else k_nGLE,
        v_nGLE.repeat_interleave(groups, dim=1) if groups > 1 else v_nGLE,
        attn_mask=_window_mask(length, window, q_nLHE.device, causal) if windowed else None,
        dropout_p=dropout,
        is_causal=causal and not windowed,
        scale=scaling,
    ).transpose(1, 2)


def _window_mask(length: int, window: int | None, device: torch.device, causal: bool) -> Tensor:
    """bool [L, L]: a token sees itself and the window - 1 tokens before it, and behind it when it may."""
    assert window is not None
    distance_LL = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance_LL < window) & (distance_LL >= 0 if causal else distance_LL > -window)


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
