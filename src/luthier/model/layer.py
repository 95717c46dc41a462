"""A decoder layer of the Llama family, forward and backward written out.

Autograd keeps whatever each operation might need.  Here a layer keeps what is expensive to compute again and
recomputes what is cheap: norms and the activation always, more of it when memory is short (`Keep`).

Legend: T packed tokens, D width, N heads of all kinds, H query heads, G key/value heads, E head width, F width of the
feed-forward part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.model.attention import Packing
from luthier.model.pointwise import Around, LowRank, Pointwise, Rider
from luthier.model.products import Product, written_out

Keep = Literal["all", "most", "some", "input"]
"""What a layer keeps for its backward pass: everything; all but norms, activation and rounded weights; not the wide
feed-forward products either; or only its input."""

_AROUND = 64
"""Ranks of adapters whose gradients are summed on the way through the activation; wider ones fill the registers."""

Attend = Callable[[Tensor, Tensor, Tensor, Packing], Tensor]
"""(q_THE, k_TGE, v_TGE, packing) -> out_THE: causal attention within each packed sequence, with a graph."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tokens of a batch stand."""

    packing: Packing
    cos_TE: Tensor
    """float32, of the tokens' positions"""
    sin_TE: Tensor


@dataclass(frozen=True)
class Layer:
    """The weights of one layer, and how to compute with them."""

    input_norm: nn.Parameter
    qkv: Product
    output: Product
    feed_norm: nn.Parameter
    gate_up: Product
    down: Product
    head_width: int
    query_heads: int
    eps: float
    head_norms: tuple[nn.Parameter, nn.Parameter] | None
    """weights of the norms of queries and keys, where the model has them (Qwen3)"""
    attend: Attend
    pointwise: Pointwise

    @property
    def products(self) -> tuple[Product, ...]:
        """Every linear layer."""
        return self.qkv, self.output, self.gate_up, self.down

    @cached_property
    def riders(self) -> list[Rider]:
        """The adapters, each with its seat beside the frozen weights."""
        return [rider for product in self.products for rider in product.riders()]

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """In the order in which `_backward` answers."""
        norms = [self.input_norm, self.feed_norm, *(self.head_norms or ())]
        return [*norms, *(parameter for product in self.products for parameter in product.parameters)]

    @cached_property
    def adapts_around(self) -> bool:
        """Whether around the activation only adapters move, whose gradients need not be products of their own."""
        widest = max(*self.gate_up.ranks, *self.down.ranks)
        return 0 < widest <= _AROUND and not self.gate_up.moves and not self.down.moves

    def __call__(self, h_TD: Tensor, place: Place, keep: Keep) -> Tensor:
        """The residual stream after this layer.  [T, D] -> [T, D]"""
        return _Step.apply(h_TD, self, place, keep, *self.parameters)


@dataclass(slots=True)
class _Attention:
    """What the attention half keeps."""

    x_TD: Tensor | None
    """the normed input"""
    u_qkv: Tensor
    raw_TNE: Tensor | None
    """queries, keys and values before the head norms, where there are any"""
    qkv: tuple[Tensor, Tensor, Tensor]
    """rotated queries and keys, and values: leaves of `out`'s graph"""
    out_TX: Tensor
    """[T, H * E] with a graph"""
    u_output: Tensor


@dataclass(slots=True)
class _Feed:
    """What the feed-forward half keeps."""

    x_TD: Tensor | None
    """the normed input"""
    gate_up_TF: Tensor
    """[T, 2F]"""
    u_gate_up: Tensor
    lacks: LowRank | None
    """what gate and up still lack"""
    act_TF: Tensor | None = None
    """the activation"""


Gradients = list[Tensor | None]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, layer: Layer, place: Place, keep: Keep, *parameters: Tensor) -> Tensor:
        with written_out(layer.products) as written:
            h2_TD, attention = _attend(layer, h_TD, place, keep)
            h3_TD = _place_of_sum(layer.down, h2_TD)
            feed = _widen(layer, h2_TD, keep, also=h3_TD)
            act_TF = layer.down.room(h_TD)
            layer.pointwise.swiglu(act_TF[:, : layer.down.into], feed.gate_up_TF, feed.lacks)
            h3_TD, u_down = layer.down.added(h2_TD if h3_TD is None else h3_TD, act_TF)
            if keep == "all" and not layer.adapts_around:
                feed.act_TF = act_TF
            del act_TF
        ctx.layer, ctx.place, ctx.u_down = layer, place, u_down
        ctx.written = written if keep == "all" else None
        ctx.attention = None if keep == "input" else attention
        ctx.feed = feed if keep in ("all", "most") else None
        ctx.save_for_backward(h_TD, *(() if keep == "input" else (h2_TD,)))
        return h3_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        written, ctx.written = ctx.written, None
        with written_out(ctx.layer.products, written):
            return _backward(ctx, dh_TD)


def _backward(ctx: Any, dh_TD: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of each argument of `_Step.forward`; what is missing is computed again first."""
    layer: Layer = ctx.layer
    h_TD, *kept = ctx.saved_tensors
    attention, feed, u_down = ctx.attention, ctx.feed, ctx.u_down
    ctx.attention = ctx.feed = ctx.u_down = None
    if attention is None:
        h2_TD, attention = _attend(layer, h_TD, ctx.place, "input")
    else:
        h2_TD = kept[0]
    if feed is None:
        feed = _widen(layer, h2_TD, "input")
    dh2_TD, dfeed_norm, of_feed = _feed_gradient(layer, dh_TD, h2_TD, feed, u_down)
    del feed
    below = ctx.needs_input_grad[0] or layer.input_norm.requires_grad
    dinput, dnorms, of_attention = _attention_gradient(layer, dh2_TD, h_TD, attention, ctx.place, below=below)
    dinput_norm, *dhead_norms = dnorms
    return dinput, None, None, None, dinput_norm, dfeed_norm, *dhead_norms, *of_attention, *of_feed


def _attend(layer: Layer, h_TD: Tensor, place: Place, keep: Keep) -> tuple[Tensor, _Attention]:
    """The residual stream after attention."""
    x_TD, h2_TD = layer.qkv.room(h_TD), _place_of_sum(layer.output, h_TD)
    layer.pointwise.norm(x_TD[:, : layer.qkv.into], h_TD, layer.input_norm, layer.eps, also=h2_TD)
    qkv_TN, u_qkv = layer.qkv.forward(x_TD)
    kept_TD = x_TD if keep == "all" else None
    del x_TD
    raw_TNE = qkv_TN.unflatten(1, (-1, layer.head_width))
    heads = layer.query_heads
    groups = (raw_TNE.shape[1] - heads) // 2
    qk_TNE = raw_TNE[:, : heads + groups]
    if layer.head_norms is not None:
        qk_TNE = torch.empty_like(qk_TNE, memory_format=torch.contiguous_format)
        for weight, part in zip(layer.head_norms, (slice(heads), slice(heads, heads + groups)), strict=True):
            layer.pointwise.norm(qk_TNE[:, part], raw_TNE[:, part], weight, layer.eps)
    layer.pointwise.rotate(qk_TNE, place.cos_TE, place.sin_TE)
    parts = qk_TNE[:, :heads], qk_TNE[:, heads:], raw_TNE[:, heads + groups :]
    # The attention kernels bring their own derivative: a small graph of its own, which the backward pass walks.
    with torch.enable_grad():
        q_THE, k_TGE, v_TGE = (part.detach().requires_grad_() for part in parts)
        out_TX = layer.attend(q_THE, k_TGE, v_TGE, place.packing).flatten(1)
    out_room = out_TX.detach()
    if layer.output.spare:
        out_room = layer.output.room(h_TD)
        layer.pointwise.copy(out_room[:, : layer.output.into], out_TX.detach())
    h2_TD, u_output = layer.output.added(h_TD if h2_TD is None else h2_TD, out_room)
    raw = raw_TNE if layer.head_norms is not None else None
    return h2_TD, _Attention(kept_TD, u_qkv, raw, (q_THE, k_TGE, v_TGE), out_TX, u_output)


def _widen(layer: Layer, h2_TD: Tensor, keep: Keep, also: Tensor | None = None) -> _Feed:
    """gate and up side by side.  also: where h2_TD is copied on the way."""
    x_TD = layer.gate_up.room(h2_TD)
    layer.pointwise.norm(x_TD[:, : layer.gate_up.into], h2_TD, layer.feed_norm, layer.eps, also=also)
    return _Feed(x_TD if keep == "all" else None, *layer.gate_up.partly(x_TD))


def _feed_gradient(
    layer: Layer, dh_TD: Tensor, h2_TD: Tensor, kept: _Feed, u_down: Tensor
) -> tuple[Tensor, Tensor | None, Gradients]:
    """d h2 (with room beside it), d norm weight, and the gradients of the products."""
    dact_TF, du_down, dact_lacks = layer.down.input_gradient_partly(_beside(layer, layer.down, dh_TD))
    around = Around(kept.u_gate_up, layer.gate_up.ranks, du_down) if layer.adapts_around else None
    # Where nothing else is met on the way, results go to the memory of what is read for the last time here.
    alone = around is kept.lacks is dact_lacks is None
    dgate_up_TF = kept.gate_up_TF if alone and not layer.gate_up.spare else layer.gate_up.room_back(dh_TD)
    act_TF, again_TF = None, None
    if around is None:
        act_TF, again_TF = _or_again(kept.act_TF, dact_TF, in_place=alone)
    summed = layer.pointwise.swiglu_gradient(
        dgate_up_TF[:, : layer.gate_up.out], again_TF, dact_TF, kept.gate_up_TF, kept.lacks, dact_lacks, around
    )
    da_down, dbs_gate_up = (None, None) if summed is None else (summed.da_KF, summed.dbs_FK)
    down = layer.down.gradients(dh_TD, act_TF, u_down, du_down, da_KI=da_down)
    del act_TF, again_TF, dact_TF
    dx_TD, du = layer.gate_up.input_gradient(dgate_up_TF)
    dh2_TD = layer.output.room_back(h2_TD)
    x_TD, again_TD = _or_again(kept.x_TD, h2_TD)
    dnorm = layer.pointwise.norm_gradient(
        dh2_TD[:, : layer.output.out],
        again_TD,
        dx_TD,
        h2_TD,
        layer.feed_norm,
        layer.eps,
        dh_TD,
        weight_moves=layer.feed_norm.requires_grad,
    )
    gate_up = layer.gate_up.gradients(dgate_up_TF, x_TD, kept.u_gate_up, du, dbs=dbs_gate_up)
    return dh2_TD, dnorm, [*gate_up, *down]


def _attention_gradient(
    layer: Layer, dh2_TD: Tensor, h_TD: Tensor, kept: _Attention, place: Place, *, below: bool
) -> tuple[Tensor | None, Gradients, Gradients]:
    """d h, d norm weights (the input's, then the heads'), and the gradients of the products.

    below: whether anything moves below the products: the first layer of a frozen base needs no d h.
    """
    dout_TX, du_output = layer.output.input_gradient(dh2_TD)
    dh2_TD = dh2_TD[:, : layer.output.out]
    output = layer.output.gradients(dh2_TD, kept.out_TX.detach(), kept.u_output, du_output)
    dq_THE, dk_TGE, dv_TGE = torch.autograd.grad(kept.out_TX, kept.qkv, dout_TX)
    dqkv_TN = layer.qkv.room_back(h_TD)
    dqkv_TNE = dqkv_TN[:, : layer.qkv.out].unflatten(1, (-1, layer.head_width))
    layer.pointwise.rotate_back(dqkv_TNE, dq_THE, dk_TGE, dv_TGE, place.cos_TE, place.sin_TE)
    dhead_norms: Gradients = []
    if layer.head_norms is not None:
        assert kept.raw_TNE is not None
        heads = layer.query_heads
        for weight, part in zip(layer.head_norms, (slice(heads), slice(heads, heads + dk_TGE.shape[1])), strict=True):
            of_heads, raw, moves = dqkv_TNE[:, part], kept.raw_TNE[:, part], weight.requires_grad
            dhead_norms.append(
                layer.pointwise.norm_gradient(
                    of_heads, None, of_heads, raw, weight, layer.eps, None, weight_moves=moves
                )
            )
    x_TD, again_TD = _or_again(kept.x_TD, h_TD)
    dh_TD, dnorm = None, None
    if below:
        dx_TD, du = layer.qkv.input_gradient(dqkv_TN)
        dh_TD, moves = torch.empty_like(h_TD), layer.input_norm.requires_grad
        dnorm = layer.pointwise.norm_gradient(
            dh_TD, again_TD, dx_TD, h_TD, layer.input_norm, layer.eps, dh2_TD, weight_moves=moves
        )
    else:
        du = layer.qkv.inner_gradient(dqkv_TN)
        if again_TD is not None:
            layer.pointwise.norm(again_TD, h_TD, layer.input_norm, layer.eps)
    qkv = layer.qkv.gradients(dqkv_TN, x_TD, kept.u_qkv, du)
    return dh_TD, [dnorm, *dhead_norms], [*qkv, *output]


def _place_of_sum(product: Product, h_TD: Tensor) -> Tensor | None:
    """Where the residual stream is copied to, for the product to add to; None where it wants no copy."""
    return torch.empty_like(h_TD) if product.adds_in_place else None


def _or_again(kept: Tensor | None, like: Tensor, *, in_place: bool = False) -> tuple[Tensor, Tensor | None]:
    """What was kept; or where to compute it again, twice."""
    if kept is not None:
        return kept, None
    again = like if in_place else torch.empty_like(like)
    return again, again


def _beside(layer: Layer, product: Product, dy_TO: Tensor) -> Tensor:
    """The output's gradient, with room beside it where something is to ride there."""
    if product.lends or not product.spare:
        return dy_TO
    room = product.room_back(dy_TO)
    layer.pointwise.copy(room[:, : product.out], dy_TO)
    return room
