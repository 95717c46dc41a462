"""One step of many running sequences through a Llama-shaped decoder, with as few operations as there can be.

A step of few tokens is bound by how many operations it takes, not by what they compute.  Here are no modules, the
projections of one input are one product, norms are one operation each, and rotation is read from a table.  The numbers
are those of transformers' modules, operation by operation.

Legend: T tokens of a step, D width, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from luthier.model.lanes import Step

_KNOWN = ("Llama", "Mistral", "Qwen2", "Qwen3")


@dataclass(frozen=True, slots=True)
class _Product:
    """Linear layers with one input."""

    weight_OI: Tensor
    bias_O: Tensor | None

    def __call__(self, x_TI: Tensor) -> Tensor:
        return linear(x_TI, self.weight_OI, self.bias_O)


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm_D: Tensor
    qkv: _Product
    head_norms_E: tuple[Tensor, Tensor] | None
    output: _Product
    feed_norm_D: Tensor
    gate_up: _Product
    down: _Product
    window: int | None


class Stepper:
    """The decoder of a model, for steps of some tokens.

    Weights of one input are laid side by side in memory; the decoder's own modules keep them as views, so that nothing
    is held twice and everything else runs as before.

    Args:
        decoder: transformers' decoder; see `suits`.
    """

    def __init__(self, decoder: Any):
        attention = decoder.layers[0].self_attn
        self._decoder = decoder
        self._eps: float = decoder.norm.variance_epsilon
        self._heads: int = decoder.config.num_attention_heads
        self._width: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._layers = [_layer(module) for module in decoder.layers]
        self._turns: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def suits(decoder: Any, dtype: torch.dtype) -> bool:
        """Whether a decoder is computed here: a known architecture, with nothing on it, all of it in one type, and not
        about to be trained."""
        name = type(decoder).__name__.removesuffix("Model")
        home = f"transformers.models.{name.lower()}.modeling_{name.lower()}"
        if name not in _KNOWN or type(decoder).__module__ != home or decoder.config.hidden_act not in ("silu", "swish"):
            return False
        weights = list(decoder.parameters())
        held = all(
            type(weight.data) is Tensor and weight.dtype == dtype and not weight.requires_grad for weight in weights
        )
        return held and all(_is_plain(module, name) for module in decoder.layers)

    def __call__(self, ids_T: Tensor, step: Step) -> Tensor:
        """hidden_TD after the final norm."""
        h_TD = self._decoder.embed_tokens(ids_T)
        cos_T1E, sin_T1E = self._turned(step.positions_T, h_TD)
        for number, layer in enumerate(self._layers):
            x_TD = self._norm(h_TD, layer.input_norm_D)
            qkv_THE = layer.qkv(x_TD).unflatten(-1, (-1, self._width))
            groups = (qkv_THE.shape[1] - self._heads) // 2
            q_THE, k_TGE, v_TGE = qkv_THE.split((self._heads, groups, groups), dim=1)
            if layer.head_norms_E is not None:
                q_THE, k_TGE = (
                    self._norm(part, norm) for part, norm in zip((q_THE, k_TGE), layer.head_norms_E, strict=True)
                )
                turned = torch.cat((q_THE, k_TGE), dim=1)
            else:
                turned = qkv_THE[:, : self._heads + groups]
            turned = turned * cos_T1E + _half_turned(turned) * sin_T1E
            q_THE, k_TGE = turned.split((self._heads, groups), dim=1)
            out_THE = step.attend(number, q_THE, k_TGE, v_TGE, self._scaling, layer.window)
            h_TD = h_TD + layer.output(out_THE.flatten(1))
            gate_TF, up_TF = layer.gate_up(self._norm(h_TD, layer.feed_norm_D)).chunk(2, dim=-1)
            h_TD = h_TD + layer.down(silu(gate_TF) * up_TF)
        return self._norm(h_TD, self._decoder.norm.weight)

    def _norm(self, x: Tensor, weight_D: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return rms_norm(x, weight_D.shape, weight_D, self._eps)
        return weight_D * rms_norm(x.float(), weight_D.shape, None, self._eps).to(x.dtype)

    def _turned(self, positions_T: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the tokens' places, by transformers' own rule, kept once they are computed."""
        rotary: Any = self._decoder.rotary_emb
        if rotary.rope_type != "default":  # rules that look at how long a text is
            cos_1TE, sin_1TE = rotary(like, positions_T[None])
            return cos_1TE[0, :, None], sin_1TE[0, :, None]
        if self._turns is None:
            every = torch.arange(self._decoder.config.max_position_embeddings, device=positions_T.device)
            cos_1LE, sin_1LE = rotary(like, every[None])
            self._turns = cos_1LE[0, :, None], sin_1LE[0, :, None]
        cos_L1E, sin_L1E = self._turns
        return cos_L1E[positions_T], sin_L1E[positions_T]


def _half_turned(x: Tensor) -> Tensor:
    """Each head's second half, negated, before its first."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _layer(module: Any) -> _Layer:
    attention, feed = module.self_attn, module.mlp
    norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
    window = getattr(attention, "sliding_window", None)
    if type(attention).__name__ == "MistralAttention":  # its layers leave the window in the settings
        window = attention.config.sliding_window
    return _Layer(
        module.input_layernorm.weight,
        _joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        norms,
        _joined([attention.o_proj]),
        module.post_attention_layernorm.weight,
        _joined([feed.gate_proj, feed.up_proj]),
        _joined([feed.down_proj]),
        window,
    )


def _joined(parts: Sequence[Any]) -> _Product:
    """Linear layers as one; their weights become views of it."""
    if len(parts) == 1:
        return _Product(parts[0].weight, parts[0].bias)
    weight_OI = torch.cat([part.weight.data for part in parts])
    for part, rows in zip(parts, weight_OI.split([part.out_features for part in parts]), strict=True):
        part.weight.data = rows
    return _Product(weight_OI, None if parts[0].bias is None else torch.cat([part.bias for part in parts]))


def _is_plain(module: Any, name: str) -> bool:
    """Whether a layer is as transformers made it."""
    attention, feed = module.self_attn, module.mlp
    inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
    linears = [*inputs, attention.o_proj, feed.gate_proj, feed.up_proj, feed.down_proj]
    norms = [module.input_layernorm, module.post_attention_layernorm]
    norms += [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
    kinds = {type(module).__name__, type(attention).__name__, type(feed).__name__}
    return (
        kinds == {f"{name}DecoderLayer", f"{name}Attention", f"{name}MLP"}
        and all(type(linear) is nn.Linear for linear in linears)
        and all(type(norm).__name__ == f"{name}RMSNorm" for norm in norms)
        and all(len({linear.bias is None for linear in part}) == 1 for part in (inputs, [feed.gate_proj, feed.up_proj]))
    )
