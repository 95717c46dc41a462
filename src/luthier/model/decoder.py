"""The decoder of a Llama-shaped model run layer by layer through `model.layer`, instead of through transformers.

It shares the model's parameters: nothing is copied, and what is trained, saved or merged is the same model.

Legend: T packed tokens, D width, H query heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.model.attention import Packing, within
from luthier.model.layer import Keep, Layer, Place
from luthier.model.lowbit import LowBitLinear
from luthier.model.lowproducts import Float8Product, LowBitProduct
from luthier.model.pointwise import Pointwise
from luthier.model.products import Linear, Product, is_plain32

# Architectures of transformers whose layers are exactly what `model.layer` computes.  Told by name, since importing
# them all would take seconds.
_KNOWN = ("Llama", "Mistral", "Qwen2", "Qwen3")


class Unsuitable(Exception):
    """The model has something that `model.layer` does not compute; the message says what."""


class Decoder:
    """Embedding, layers and final norm of a model.

    Args:
        decoder: the transformers decoder, with adapters on it or without.
        dtype: the arithmetic's type.

    Raises:
        Unsuitable: not an architecture or an adapter that is computed here.
    """

    def __init__(self, decoder: Any, dtype: torch.dtype, pointwise: Pointwise):
        name = type(decoder).__name__.removesuffix("Model")
        if (
            name not in _KNOWN
            or type(decoder).__module__ != f"transformers.models.{name.lower()}.modeling_{name.lower()}"
        ):
            raise Unsuitable(f"{type(decoder).__name__} is computed by transformers only")
        if decoder.config.hidden_act not in ("silu", "swish"):
            raise Unsuitable(f"its activation is {decoder.config.hidden_act}")
        if decoder.layers[0].self_attn.head_dim.bit_count() != 1:
            raise Unsuitable("its heads are not a power of two wide")
        if decoder.config.attention_dropout:
            raise Unsuitable("it drops attention weights")
        self.norm_type = f"{name}RMSNorm"
        if any(type(module).__name__ != f"{name}DecoderLayer" for module in decoder.layers):
            raise Unsuitable("its layers are not the architecture's own")
        self.decoder, self.dtype, self.pointwise = decoder, dtype, pointwise
        self.final_norm = self._norm(decoder.norm)
        self.layers = [self._layer(module) for module in decoder.layers]
        self.board = pointwise.board([rider for layer in self.layers for rider in layer.riders])

    def hidden(self, ids_T: Tensor, positions_T: Tensor, packing: Packing, keep: Keep) -> Tensor:
        """hidden_TD after the final norm."""
        h_TD = self._embedded(ids_T)
        cos_1TE, sin_1TE = self.decoder.rotary_emb(h_TD.new_empty(0, dtype=torch.float32), positions_T[None])
        place = Place(packing, cos_1TE[0], sin_1TE[0])
        self.board()
        for layer in self.layers:
            h_TD = layer(h_TD, place, keep)
        return _Norm.apply(h_TD, self.final_norm, self.decoder.norm.variance_epsilon, self.pointwise)

    def _embedded(self, ids_T: Tensor) -> Tensor:
        embed: Any = self.decoder.embed_tokens
        kind: type = type(embed)
        plain = kind is nn.Embedding and not embed._forward_hooks
        if plain and embed.weight.requires_grad and embed.weight.is_leaf and is_plain32(embed.weight.grad):
            return _Embed.apply(ids_T, embed.weight, embed.padding_idx, self.dtype)
        return embed(ids_T).to(self.dtype)

    def _layer(self, module: Any) -> Layer:
        attention, feed = module.self_attn, module.mlp
        names = "q_proj", "k_proj", "v_proj"
        head_norms = None
        if hasattr(attention, "q_norm"):
            head_norms = self._norm(attention.q_norm), self._norm(attention.k_norm)
        window = getattr(attention, "sliding_window", None)
        if type(attention).__name__ == "MistralAttention":  # its layers leave the window in the settings
            window = attention.config.sliding_window
        return Layer(
            input_norm=self._norm(module.input_layernorm),
            qkv=self._product([getattr(attention, name) for name in names]),
            output=self._product([attention.o_proj]),
            feed_norm=self._norm(module.post_attention_layernorm),
            gate_up=self._product([feed.gate_proj, feed.up_proj]),
            down=self._product([feed.down_proj]),
            head_width=attention.head_dim,
            query_heads=attention.config.num_attention_heads,
            eps=module.input_layernorm.variance_epsilon,
            head_norms=head_norms,
            attend=partial(within, scaling=attention.scaling, window=window),
            pointwise=self.pointwise,
        )

    def _norm(self, module: Any) -> nn.Parameter:
        if type(module).__name__ != self.norm_type:
            raise Unsuitable("a norm is wrapped")
        return module.weight

    def _product(self, modules: Sequence[Any]) -> Product:
        linears = [_linear(module) for module in modules]
        if not any(isinstance(linear.weight, LowBitLinear) for linear in linears):
            return Product(linears, self.dtype)
        if Float8Product.fits(linears):
            return Float8Product(linears, self.dtype, self.pointwise)
        return LowBitProduct(linears, self.dtype)


class _Embed(torch.autograd.Function):
    """Rows of a vocabulary that has a gradient already, to which theirs is added: no second one of its size is made."""

    @staticmethod
    def forward(ctx: Any, ids_T: Tensor, weight_VD: Tensor, padding: int | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(ids_T, weight_VD)
        ctx.padding = padding
        return torch.nn.functional.embedding(ids_T, weight_VD).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ids_T, weight_VD = ctx.saved_tensors
        rows_TD = dh_TD.float()
        if ctx.padding is not None:
            rows_TD = rows_TD.masked_fill((ids_T == ctx.padding)[:, None], 0.0)
        weight_VD.grad.index_put_((ids_T,), rows_TD, accumulate=True)
        return None, None, None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, weight_D: Tensor, eps: float, pointwise: Pointwise) -> Tensor:
        ctx.save_for_backward(h_TD, weight_D)
        ctx.eps, ctx.pointwise = eps, pointwise
        out_TD = torch.empty_like(h_TD)
        pointwise.norm(out_TD, h_TD, weight_D, eps)
        return out_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dx_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        h_TD, weight_D = ctx.saved_tensors
        dh_TD = torch.empty_like(h_TD)
        moves = ctx.needs_input_grad[1]
        dnorm = ctx.pointwise.norm_gradient(dh_TD, None, dx_TD, h_TD, weight_D, ctx.eps, None, weight_moves=moves)
        return dh_TD, dnorm, None, None


def _linear(module: Any) -> Linear:
    """A linear layer, plain or with one live low-rank adapter of PEFT's."""
    kind: type = type(module)
    if kind is nn.Linear:
        return Linear(module.weight, module.bias)
    if kind is LowBitLinear:
        return Linear(module, module.bias)
    from peft.tuners.lora import Linear as Adapted

    base: Any = module.get_base_layer() if kind is Adapted else module
    base_kind: type = type(base)
    if base_kind not in (nn.Linear, LowBitLinear):
        raise Unsuitable(f"a linear layer is a {base_kind.__name__}")
    if len(module.active_adapters) != 1 or module.merged:
        raise Unsuitable("its adapters are stacked or merged")
    name: str = module.active_adapters[0]
    if name in module.lora_variant:
        raise Unsuitable("its adapters are not plain LoRA")
    if not isinstance(module.lora_dropout[name], nn.Identity):
        raise Unsuitable("its adapters drop inputs")
    a, b = module.lora_A[name], module.lora_B[name]
    if a.bias is not None or b.bias is not None or module.fan_in_fan_out:
        raise Unsuitable("its adapters have a bias")
    weight = base if base_kind is LowBitLinear else base.weight
    return Linear(weight, base.bias, (a.weight, b.weight), module.scaling[name])
