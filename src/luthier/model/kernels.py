"""`model.pointwise` as GPU kernels, each reading its inputs once and writing its outputs once.

Triton rather than torch.compile: measured on one H200, compiled functions took 20 s to warm up, twice the time of
these where two outputs lie side by side in one tensor, and several times as long to launch.

Legend: see `model.pointwise`.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportMissingImports=false
# pyright: reportPossiblyUnboundVariable=false
# pyright: reportUntypedFunctionDecorator=false, reportIndexIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.model.pointwise import LowRank

_PROGRAMS = 1024
"""Programs over which rows are dealt out where each adds up a weight's gradient."""

_FORWARD: dict[str, Any] = {"BLOCK_T": 128, "BLOCK_F": 64, "num_warps": 8}
_BACKWARD: dict[str, Any] = {"BLOCK_T": 64, "BLOCK_F": 128, "num_warps": 8}
"""How the feed-forward activation with adapters is cut up, and its derivative."""

_AT_ONCE = 4 * 132
"""Programs that keep a large GPU busy."""


@triton.jit
def _norm(out, out_t, out_n, h, h_t, h_n, weight, heads, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    t, n = row // heads, row % heads
    value = tl.load(h + t * h_t + n * h_n + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + t * out_t + n * out_n + at, value * scale * gain, mask=inside)


@triton.jit
def _norm_gradient(
    dh, dh_t, dh_n, x, x_t, dx, dx_t, dx_n, h, h_t, h_n, weight, around, around_t, dweight,
    rows, heads, width, eps,
    HAS_X: tl.constexpr, HAS_AROUND: tl.constexpr, WEIGHT_MOVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    added = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(first, rows, tl.num_programs(0)):
        t, n = (row // heads).to(tl.int64), row % heads
        value = tl.load(h + t * h_t + n * h_n + at, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dx + t * dx_t + n * dx_n + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
        normed = value * scale
        weighted = gradient * gain
        result = scale * (weighted - normed * (tl.sum(weighted * normed, 0) / width))
        if HAS_AROUND:
            result += tl.load(around + t * around_t + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_X:
            tl.store(x + t * x_t + at, normed * gain, mask=inside)
        if WEIGHT_MOVES:
            added += gradient * normed
        tl.store(dh + t * dh_t + n * dh_n + at, result, mask=inside)
    if WEIGHT_MOVES:
        tl.store(dweight + first.to(tl.int64) * width + at, added, mask=inside)


@triton.jit
def _copy(out, out_t, x, x_t, width, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    tl.store(out + t * out_t + at, tl.load(x + t * x_t + at, mask=at < width), mask=at < width)


@triton.jit
def _rotate(
    out, out_t, heads, heads_t, heads_n, cos, sin, sign, out_first, count,
    HALF: tl.constexpr, BLOCK: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)[:, None]
    e = tl.arange(0, HALF)[None, :]
    inside = n < count
    source = heads + t * heads_t + n * heads_n + e
    place = out + t * out_t + (out_first + n) * (2 * HALF) + e
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    if TURN:
        cos_low, cos_high = tl.load(cos + t * 2 * HALF + e), tl.load(cos + t * 2 * HALF + HALF + e)
        sin_low, sin_high = tl.load(sin + t * 2 * HALF + e) * sign, tl.load(sin + t * 2 * HALF + HALF + e) * sign
        tl.store(place, low * cos_low - high * sin_low, mask=inside)
        tl.store(place + HALF, high * cos_high + low * sin_high, mask=inside)
    else:
        tl.store(place, low, mask=inside)
        tl.store(place + HALF, high, mask=inside)


@triton.jit
def _swiglu(out, out_t, gate_up, gate_up_t, width, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + t * gate_up_t + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + t * gate_up_t + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + t * out_t + at, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _swiglu_gradient(dgate_up, dgate_up_t, act, act_t, dact, dact_t, gate_up, gate_up_t, width, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + t * gate_up_t + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + t * gate_up_t + width + at, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dact + t * dact_t + at, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    tl.store(act + t * act_t + at, silu * up, mask=inside)
    tl.store(dgate_up + t * dgate_up_t + at, gradient * up * (share + silu * (1 - share)), mask=inside)
    tl.store(dgate_up + t * dgate_up_t + width + at, gradient * silu, mask=inside)


@triton.jit
def _swiglu_lowrank(
    out, out_t, gate_up, gate_up_t, left, left_t, right, right_o, right_k, onto, onto_k, parts,
    tokens, width, rank, rank_onto, piece,
    LACKS: tl.constexpr, ONTO: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_ONTO: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    k, o = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_ONTO)
    rows = t[:, None] < tokens
    if LACKS:
        left_tk = tl.load(left + t[:, None] * left_t + k[None, :], mask=rows & (k[None, :] < rank), other=0.0)
    total = tl.zeros([BLOCK_T, BLOCK_ONTO], dtype=tl.float32)
    first = tl.program_id(1) * piece
    for start in range(first, min(first + piece, width), BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        inside = rows & (f[None, :] < width)
        place = gate_up + t[:, None] * gate_up_t + f[None, :]
        gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
        if LACKS:
            seat = right + f[None, :].to(tl.int64) * right_o + k[:, None] * right_k
            there = (f[None, :] < width) & (k[:, None] < rank)
            gate += tl.dot(left_tk, tl.load(seat, mask=there, other=0.0), input_precision="ieee")
            seat += width.to(tl.int64) * right_o
            up += tl.dot(left_tk, tl.load(seat, mask=there, other=0.0), input_precision="ieee")
        act = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
        tl.store(out + t[:, None] * out_t + f[None, :], act, mask=inside)
        if ONTO:
            there = (f[:, None] < width) & (o[None, :] < rank_onto)
            onto_fo = tl.load(onto + o[None, :].to(tl.int64) * onto_k + f[:, None], mask=there, other=0.0)
            total = tl.dot(act, onto_fo, total, input_precision="ieee")
    if ONTO:
        place = parts + (tl.program_id(1).to(tl.int64) * tokens + t[:, None]) * rank_onto + o[None, :]
        tl.store(place, total, mask=rows & (o[None, :] < rank_onto))


@triton.jit
def _swiglu_gradient_lowrank(
    dgate_up, dgate_up_t, act, act_t, dact, dact_t, gate_up, gate_up_t,
    left, left_t, right, right_o, right_k, dleft, dleft_t, onto, onto_k, dright_parts, donto_parts,
    tokens, width, rank, rank_onto, piece,
    HAS_ACT: tl.constexpr, LACKS: tl.constexpr, ONTO: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_ONTO: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    k, o = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_ONTO)
    columns = f[None, :] < width
    if LACKS:
        there = columns & (k[:, None] < rank)
        seat = right + f[None, :].to(tl.int64) * right_o + k[:, None] * right_k
        right_gate = tl.load(seat, mask=there, other=0.0)
        right_up = tl.load(seat + width.to(tl.int64) * right_o, mask=there, other=0.0)
    if ONTO:
        there = columns & (o[:, None] < rank_onto)
        onto_of = tl.load(onto + o[:, None].to(tl.int64) * onto_k + f[None, :], mask=there, other=0.0)
    dright_gate = tl.zeros([BLOCK_F, BLOCK_K], dtype=tl.float32)
    dright_up = tl.zeros([BLOCK_F, BLOCK_K], dtype=tl.float32)
    donto = tl.zeros([BLOCK_F, BLOCK_ONTO], dtype=tl.float32)
    first = tl.program_id(1) * piece
    for start in range(first, min(first + piece, tokens), BLOCK_T):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        rows = t[:, None] < tokens
        inside = rows & columns
        place = gate_up + t[:, None] * gate_up_t + f[None, :]
        gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dact + t[:, None] * dact_t + f[None, :], mask=inside, other=0.0).to(tl.float32)
        if LACKS:
            left_tk = tl.load(left + t[:, None] * left_t + k[None, :], mask=rows & (k[None, :] < rank), other=0.0)
            gate += tl.dot(left_tk, right_gate, input_precision="ieee")
            up += tl.dot(left_tk, right_up, input_precision="ieee")
        if ONTO:
            dleft_to = tl.load(
                dleft + t[:, None] * dleft_t + o[None, :], mask=rows & (o[None, :] < rank_onto), other=0.0
            )
            gradient += tl.dot(dleft_to, onto_of, input_precision="ieee")
        share = tl.sigmoid(gate)
        silu = gate * share
        again = (silu * up).to(dgate_up.dtype.element_ty)
        dgate = (gradient * up * (share + silu * (1 - share))).to(dgate_up.dtype.element_ty)
        dup = (gradient * silu).to(dgate_up.dtype.element_ty)
        target = dgate_up + t[:, None] * dgate_up_t + f[None, :]
        tl.store(target, dgate, mask=inside)
        tl.store(target + width, dup, mask=inside)
        if HAS_ACT:
            tl.store(act + t[:, None] * act_t + f[None, :], again, mask=inside)
        if LACKS:
            dright_gate = tl.dot(tl.trans(dgate), left_tk, dright_gate, input_precision="ieee")
            dright_up = tl.dot(tl.trans(dup), left_tk, dright_up, input_precision="ieee")
        if ONTO:
            donto = tl.dot(tl.trans(again), dleft_to, donto, input_precision="ieee")
    if LACKS:
        there = (f[:, None] < width) & (k[None, :] < rank)
        place = dright_parts + (tl.program_id(1).to(tl.int64) * 2 * width + f[:, None]) * rank + k[None, :]
        tl.store(place, dright_gate, mask=there)
        tl.store(place + width.to(tl.int64) * rank, dright_up, mask=there)
    if ONTO:
        there = (f[:, None] < width) & (o[None, :] < rank_onto)
        place = donto_parts + (tl.program_id(1).to(tl.int64) * rank_onto + o[None, :]) * width + f[:, None]
        tl.store(place, donto, mask=there)


@triton.jit
def _round_rows(codes, scales, x, x_t, columns, width, HAS_COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    highest = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + t * x_t + at, mask=at < width, other=0.0).to(tl.float32)
        if HAS_COLUMNS:
            value *= tl.load(columns + at, mask=at < width, other=0.0)
        highest = tl.maximum(highest, tl.abs(value))
    scale = tl.maximum(tl.max(highest, 0), 1e-12) / 448.0
    tl.store(scales + t, scale)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + t * x_t + at, mask=at < width, other=0.0).to(tl.float32)
        if HAS_COLUMNS:
            value *= tl.load(columns + at, mask=at < width, other=0.0)
        value = tl.minimum(tl.maximum(value / scale, -448.0), 448.0)
        tl.store(codes + t * width + at, value.to(tl.float8e4nv), mask=at < width)


@triton.jit
def _transpose(out, x, rows, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(x + row[:, None].to(tl.int64) * columns + column[None, :], mask=inside)
    tl.store(out + column[:, None].to(tl.int64) * rows + row[None, :], tl.trans(tile), mask=tl.trans(inside))


@triton.jit
def _score(logits, logits_r, targets, logprobs, correct, norms, vocabulary, BLOCK: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + r)
    # The running maximum is one number, so that each logit costs one exponential; where it stands, lane by lane.
    top = tl.full([], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    where = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(logits + r * logits_r + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        where = tl.where(value > best, at, where)
        best = tl.maximum(value, best)
        new_top = tl.maximum(top, tl.max(value, 0))
        total = total * tl.exp(top - new_top) + tl.exp(value - new_top)
        top = new_top
    norm = top + tl.log(tl.sum(total, 0))
    # Of equal logits the first counts, as in torch.argmax.
    likeliest = tl.min(tl.where(best == top, where, vocabulary), 0)
    tl.store(norms + r, norm)
    tl.store(logprobs + r, tl.load(logits + r * logits_r + target).to(tl.float32) - norm)
    tl.store(correct + r, likeliest == target)


@triton.jit
def _score_gradient(
    logits, logits_r, targets, norms, dlogprobs, vocabulary, HAS_GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocabulary
    value = tl.load(logits + r * logits_r + at, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.where(at == tl.load(targets + r), 1.0, 0.0) - tl.exp(value - tl.load(norms + r))
    if HAS_GRADIENT:
        gradient *= tl.load(dlogprobs + r)
    tl.store(logits + r * logits_r + at, gradient, mask=inside)


class Fused:
    """One kernel each, on a CUDA device.  The last axis of every tensor is contiguous."""

    def norm(self, out: Tensor, h: Tensor, weight: Tensor, eps: float) -> None:
        heads, rows, block = _rows(h)
        _norm[(rows,)](
            out, out.stride(0), out.stride(-2), h, h.stride(0), h.stride(-2), weight, heads, h.shape[-1], eps,
            BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip

    def norm_gradient(
        self,
        dh: Tensor,
        x: Tensor | None,
        dx: Tensor,
        h: Tensor,
        weight: Tensor,
        eps: float,
        around: Tensor | None,
        *,
        weight_moves: bool,
    ) -> Tensor | None:
        heads, rows, block = _rows(h)
        programs = min(rows, _PROGRAMS) if weight_moves else rows
        partial = h.new_empty(programs, h.shape[-1], dtype=torch.float32) if weight_moves else None
        _norm_gradient[(programs,)](
            dh, dh.stride(0), dh.stride(-2),
            x if x is not None else dh, x.stride(0) if x is not None else 0,
            dx, dx.stride(0), dx.stride(-2), h, h.stride(0), h.stride(-2), weight,
            around if around is not None else dh, around.stride(0) if around is not None else 0,
            partial if partial is not None else dh,
            rows, heads, h.shape[-1], eps,
            HAS_X=x is not None, HAS_AROUND=around is not None, WEIGHT_MOVES=weight_moves,
            BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        return None if partial is None else partial.sum(0)

    def copy(self, out_TD: Tensor, x_TD: Tensor) -> None:
        block = triton.next_power_of_2(x_TD.shape[1])
        _copy[(len(x_TD),)](
            out_TD, out_TD.stride(0), x_TD, x_TD.stride(0), x_TD.shape[1], BLOCK=block, num_warps=_warps(block)
        )

    def rotate(self, heads_TNE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> None:
        self._rotate(heads_TNE, 0, heads_TNE, cos_TE, sin_TE, 1.0, turn=True)

    def rotate_back(
        self, out_TNE: Tensor, dq_THE: Tensor, dk_TGE: Tensor, dv_TGE: Tensor, cos_TE: Tensor, sin_TE: Tensor
    ) -> None:
        heads, groups = dq_THE.shape[1], dk_TGE.shape[1]
        self._rotate(out_TNE, 0, dq_THE, cos_TE, sin_TE, -1.0, turn=True)
        self._rotate(out_TNE, heads, dk_TGE, cos_TE, sin_TE, -1.0, turn=True)
        self._rotate(out_TNE, heads + groups, dv_TGE, cos_TE, sin_TE, 1.0, turn=False)

    def _rotate(
        self, out_TNE: Tensor, first: int, heads_TNE: Tensor, cos_TE: Tensor, sin_TE: Tensor, sign: float, *, turn: bool
    ) -> None:
        tokens, count, width = heads_TNE.shape
        _rotate[(tokens,)](
            out_TNE, out_TNE.stride(0), heads_TNE, heads_TNE.stride(0), heads_TNE.stride(1), cos_TE, sin_TE, sign,
            first, count, HALF=width // 2, BLOCK=triton.next_power_of_2(count), TURN=turn,
        )  # fmt: skip

    def swiglu(
        self, out_TF: Tensor, gate_up_TF: Tensor, lacks: LowRank | None, onto_KF: Tensor | None
    ) -> Tensor | None:
        tokens, width = out_TF.shape
        if lacks is None and onto_KF is None:
            _swiglu[(tokens, triton.cdiv(width, 1024))](
                out_TF, out_TF.stride(0), gate_up_TF, gate_up_TF.stride(0), width, BLOCK=1024
            )
            return None
        rows, rank_onto = triton.cdiv(tokens, _FORWARD["BLOCK_T"]), 0 if onto_KF is None else len(onto_KF)
        pieces, piece = _pieces(width, _FORWARD["BLOCK_F"], rows)
        parts = out_TF.new_empty(pieces, tokens, rank_onto, dtype=torch.float32)
        _swiglu_lowrank[(rows, pieces)](
            out_TF, out_TF.stride(0), gate_up_TF, gate_up_TF.stride(0), *_lowrank(lacks, out_TF),
            *((out_TF, 0) if onto_KF is None else (onto_KF, onto_KF.stride(0))), parts,
            tokens, width, _rank(lacks), rank_onto, piece,
            LACKS=lacks is not None, ONTO=onto_KF is not None, BLOCK_K=_block(_rank(lacks)),
            BLOCK_ONTO=_block(rank_onto), **_FORWARD,
        )  # fmt: skip
        return None if onto_KF is None else parts.sum(0).to(out_TF.dtype)

    def swiglu_gradient(
        self,
        dgate_up_TF: Tensor,
        act_TF: Tensor | None,
        dact_TF: Tensor,
        gate_up_TF: Tensor,
        lacks: LowRank | None,
        dact_lacks: LowRank | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        tokens, width = dact_TF.shape
        act, act_t = (dact_TF, 0) if act_TF is None else (act_TF, act_TF.stride(0))
        if lacks is None and dact_lacks is None and act_TF is not None:
            _swiglu_gradient[(tokens, triton.cdiv(width, 1024))](
                dgate_up_TF, dgate_up_TF.stride(0), act, act_t, dact_TF, dact_TF.stride(0),
                gate_up_TF, gate_up_TF.stride(0), width, BLOCK=1024,
            )  # fmt: skip
            return None, None
        columns, rank, rank_onto = triton.cdiv(width, _BACKWARD["BLOCK_F"]), _rank(lacks), _rank(dact_lacks)
        pieces, piece = _pieces(tokens, _BACKWARD["BLOCK_T"], columns)
        dright = dact_TF.new_empty(pieces, 2 * width, rank, dtype=torch.float32)
        donto = dact_TF.new_empty(pieces, rank_onto, width, dtype=torch.float32)
        dleft, dleft_t, onto, _, onto_k = _lowrank(dact_lacks, dact_TF)
        _swiglu_gradient_lowrank[(columns, pieces)](
            dgate_up_TF, dgate_up_TF.stride(0), act, act_t, dact_TF, dact_TF.stride(0),
            gate_up_TF, gate_up_TF.stride(0), *_lowrank(lacks, dact_TF), dleft, dleft_t, onto, onto_k, dright, donto,
            tokens, width, rank, rank_onto, piece,
            HAS_ACT=act_TF is not None, LACKS=lacks is not None, ONTO=dact_lacks is not None,
            BLOCK_K=_block(rank), BLOCK_ONTO=_block(rank_onto), **_BACKWARD,
        )  # fmt: skip
        return dright.sum(0) if lacks is not None else None, donto.sum(0) if dact_lacks is not None else None

    def round_rows(self, x_TI: Tensor, columns_I: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens, width = x_TI.shape
        codes_TI = x_TI.new_empty(tokens, width, dtype=torch.float8_e4m3fn)
        scale_T = x_TI.new_empty(tokens, dtype=torch.float32)
        _round_rows[(tokens,)](
            codes_TI, scale_T, x_TI, x_TI.stride(0), columns_I if columns_I is not None else scale_T, width,
            HAS_COLUMNS=columns_I is not None, BLOCK=min(4096, triton.next_power_of_2(width)), num_warps=8,
        )  # fmt: skip
        return codes_TI, scale_T

    def transpose(self, codes_OI: Tensor) -> Tensor:
        rows, columns = codes_OI.shape
        out_IO = codes_OI.new_empty(columns, rows)
        _transpose[(triton.cdiv(rows, 128), triton.cdiv(columns, 128))](
            out_IO.view(torch.int8), codes_OI.view(torch.int8), rows, columns, BLOCK=128, num_warps=8
        )
        return out_IO

    def score(self, logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, vocabulary = logits_RV.shape
        logprobs_R = logits_RV.new_empty(rows, dtype=torch.float32)
        correct_R = logits_RV.new_empty(rows, dtype=torch.bool)
        norm_R = torch.empty_like(logprobs_R)
        if rows:
            _score[(rows,)](
                logits_RV, logits_RV.stride(0), targets_R, logprobs_R, correct_R, norm_R, vocabulary,
                BLOCK=4096, num_warps=8,
            )  # fmt: skip
        return logprobs_R, correct_R, norm_R

    def score_gradient(self, logits_RV: Tensor, targets_R: Tensor, norm_R: Tensor, dlogprobs_R: Tensor | None) -> None:
        rows, vocabulary = logits_RV.shape
        if rows:
            _score_gradient[(rows, triton.cdiv(vocabulary, 4096))](
                logits_RV, logits_RV.stride(0), targets_R, norm_R, dlogprobs_R if dlogprobs_R is not None else norm_R,
                vocabulary, HAS_GRADIENT=dlogprobs_R is not None, BLOCK=4096, num_warps=8,
            )  # fmt: skip


def _rows(h: Tensor) -> tuple[int, int, int]:
    """Heads of a token (1 for [T, D]), rows to be normed, and a block that holds one."""
    heads = h.shape[1] if h.ndim == 3 else 1
    return heads, h.shape[0] * heads, triton.next_power_of_2(h.shape[-1])


def _rank(part: LowRank | None) -> int:
    return 0 if part is None else part.left_TK.shape[1]


def _lowrank(part: LowRank | None, other: Tensor) -> tuple[Any, ...]:
    """left, its stride, right, its strides; something to point at where there is none."""
    if part is None:
        return other, 0, other, 0, 0
    return part.left_TK, part.left_TK.stride(0), part.right_OK, *part.right_OK.stride()


def _block(rank: int) -> int:
    """Columns that hold a rank; matrix units want 16."""
    return max(16, triton.next_power_of_2(rank))


def _pieces(length: int, block: int, others: int) -> tuple[int, int]:
    """Into how many pieces of how much to cut an axis, so that with `others` programs along the other axis the GPU is
    busy."""
    blocks = triton.cdiv(length, block)
    piece = triton.cdiv(blocks, min(blocks, triton.cdiv(_AT_ONCE, others))) * block
    return triton.cdiv(length, piece), piece


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))
