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

_TILE: dict[str, Any] = {"BLOCK_T": 32, "BLOCK_F": 128, "num_warps": 4}
"""How the feed-forward activation is cut up where adapters are added on the way."""

_ROW_WARPS = 32
"""Warps that share a long row."""


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
def _turned(out, heads, heads_n, cos, sin, count, HALF: tl.constexpr, BLOCK: tl.constexpr, TURN: tl.constexpr):
    """One token's heads, turned forward (1), back (-1) or not at all (0), to where they lie side by side."""
    n = tl.arange(0, BLOCK)[:, None]
    e = tl.arange(0, HALF)[None, :]
    inside = n < count
    source, place = heads + n * heads_n + e, out + n * (2 * HALF) + e
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    if TURN != 0:
        cos_low, cos_high = tl.load(cos + e), tl.load(cos + HALF + e)
        sin_low, sin_high = tl.load(sin + e) * TURN, tl.load(sin + HALF + e) * TURN
        tl.store(place, low * cos_low - high * sin_low, mask=inside)
        tl.store(place + HALF, high * cos_high + low * sin_high, mask=inside)
    else:
        tl.store(place, low, mask=inside)
        tl.store(place + HALF, high, mask=inside)


@triton.jit
def _rotate(heads, heads_t, heads_n, cos, sin, count, HALF: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    here = heads + t * heads_t
    _turned(here, here, heads_n, cos + t * 2 * HALF, sin + t * 2 * HALF, count, HALF, BLOCK, 1)


@triton.jit
def _rotate_back(
    out, out_t, dq, dq_t, dq_n, dk, dk_t, dk_n, dv, dv_t, dv_n, cos, sin, heads, groups,
    HALF: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    out += t * out_t
    cos += t * 2 * HALF
    sin += t * 2 * HALF
    _turned(out, dq + t * dq_t, dq_n, cos, sin, heads, HALF, BLOCK_H, -1)
    _turned(out + heads * 2 * HALF, dk + t * dk_t, dk_n, cos, sin, groups, HALF, BLOCK_G, -1)
    _turned(out + (heads + groups) * 2 * HALF, dv + t * dv_t, dv_n, cos, sin, groups, HALF, BLOCK_G, 0)


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
def _lacking(left, left_t, right, right_o, right_k, t, o, tokens, outputs, rank, BLOCK_K: tl.constexpr):
    """left right^T at some tokens and outputs."""
    k = tl.arange(0, BLOCK_K)
    here = (t[:, None] < tokens) & (k[None, :] < rank)
    left_tk = tl.load(left + t[:, None] * left_t + k[None, :], mask=here, other=0.0)
    seat = right + o[None, :].to(tl.int64) * right_o + k[:, None] * right_k
    right_ko = tl.load(seat, mask=(o[None, :] < outputs) & (k[:, None] < rank), other=0.0)
    return tl.dot(left_tk, right_ko, input_precision="ieee")


@triton.jit
def _swiglu_lacking(
    out, out_t, gate_up, gate_up_t, left, left_t, right, right_o, right_k, tokens, width, rank,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = (t[:, None] < tokens) & (f[None, :] < width)
    place = gate_up + t[:, None] * gate_up_t + f[None, :]
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    beside = right + width.to(tl.int64) * right_o
    gate += _lacking(left, left_t, right, right_o, right_k, t, f, tokens, width, rank, BLOCK_K)
    up += _lacking(left, left_t, beside, right_o, right_k, t, f, tokens, width, rank, BLOCK_K)
    tl.store(out + t[:, None] * out_t + f[None, :], gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _swiglu_gradient_lacking(
    dgate_up, dgate_up_t, act, act_t, dact, dact_t, gate_up, gate_up_t,
    left, left_t, right, right_o, right_k, rank, dleft, dleft_t, dright, dright_o, dright_k, drank, tokens, width,
    LACKS: tl.constexpr, DACT_LACKS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_DK: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = (t[:, None] < tokens) & (f[None, :] < width)
    place = gate_up + t[:, None] * gate_up_t + f[None, :]
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dact + t[:, None] * dact_t + f[None, :], mask=inside, other=0.0).to(tl.float32)
    if LACKS:
        beside = right + width.to(tl.int64) * right_o
        gate += _lacking(left, left_t, right, right_o, right_k, t, f, tokens, width, rank, BLOCK_K)
        up += _lacking(left, left_t, beside, right_o, right_k, t, f, tokens, width, rank, BLOCK_K)
    if DACT_LACKS:
        gradient += _lacking(dleft, dleft_t, dright, dright_o, dright_k, t, f, tokens, width, drank, BLOCK_DK)
    # Outputs may lie where the inputs do, and another thread may write an element than has read it.
    tl.debug_barrier()
    share = tl.sigmoid(gate)
    silu = gate * share
    tl.store(act + t[:, None] * act_t + f[None, :], silu * up, mask=inside)
    target = dgate_up + t[:, None] * dgate_up_t + f[None, :]
    tl.store(target, gradient * up * (share + silu * (1 - share)), mask=inside)
    tl.store(target + width, gradient * silu, mask=inside)


@triton.jit
def _scaled_row(x, columns, at, inside, HAS_COLUMNS: tl.constexpr):
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_COLUMNS:
        value *= tl.load(columns + at, mask=inside, other=0.0)
    return value


@triton.jit
def _rounded(value, scale):
    return tl.minimum(tl.maximum(value / scale, -448.0), 448.0).to(tl.float8e4nv)


@triton.jit
def _round_rows(
    codes, scales, x, x_t, columns, width, HAS_COLUMNS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64)
    # A row is held whole, in two parts, since parts are powers of two long; so it is read once.
    first, second = tl.arange(0, BLOCK), BLOCK + tl.arange(0, REST)
    low = _scaled_row(x + t * x_t, columns, first, first < width, HAS_COLUMNS)
    high = _scaled_row(x + t * x_t, columns, second, second < width, HAS_COLUMNS)
    highest = tl.maximum(tl.max(tl.abs(low), 0), tl.max(tl.abs(high), 0))
    scale = tl.maximum(highest, 1e-12) / 448.0
    tl.store(scales + t, scale)
    tl.store(codes + t * width + first, _rounded(low, scale), mask=first < width)
    tl.store(codes + t * width + second, _rounded(high, scale), mask=second < width)


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
        tokens, count, width = heads_TNE.shape
        _rotate[(tokens,)](
            heads_TNE, heads_TNE.stride(0), heads_TNE.stride(1), cos_TE, sin_TE, count,
            HALF=width // 2, BLOCK=triton.next_power_of_2(count),
        )  # fmt: skip

    def rotate_back(
        self, out_TNE: Tensor, dq_THE: Tensor, dk_TGE: Tensor, dv_TGE: Tensor, cos_TE: Tensor, sin_TE: Tensor
    ) -> None:
        tokens, heads, width = dq_THE.shape
        groups = dk_TGE.shape[1]
        parts = [number for part in (dq_THE, dk_TGE, dv_TGE) for number in (part, part.stride(0), part.stride(1))]
        _rotate_back[(tokens,)](
            out_TNE, out_TNE.stride(0), *parts, cos_TE, sin_TE, heads, groups, HALF=width // 2,
            BLOCK_H=triton.next_power_of_2(heads), BLOCK_G=triton.next_power_of_2(groups),
        )  # fmt: skip

    def swiglu(self, out_TF: Tensor, gate_up_TF: Tensor, lacks: LowRank | None) -> None:
        tokens, width = out_TF.shape
        if lacks is None:
            _swiglu[(tokens, triton.cdiv(width, 1024))](
                out_TF, out_TF.stride(0), gate_up_TF, gate_up_TF.stride(0), width, BLOCK=1024
            )
        else:
            _swiglu_lacking[_tiles(tokens, width)](
                out_TF, out_TF.stride(0), gate_up_TF, gate_up_TF.stride(0), *_pointers(lacks), tokens, width,
                lacks.left_TK.shape[1], BLOCK_K=_block(lacks), **_TILE,
            )  # fmt: skip

    def swiglu_gradient(
        self,
        dgate_up_TF: Tensor,
        act_TF: Tensor,
        dact_TF: Tensor,
        gate_up_TF: Tensor,
        lacks: LowRank | None,
        dact_lacks: LowRank | None,
    ) -> None:
        tokens, width = act_TF.shape
        places = (
            dgate_up_TF, dgate_up_TF.stride(0), act_TF, act_TF.stride(0), dact_TF, dact_TF.stride(0),
            gate_up_TF, gate_up_TF.stride(0),
        )  # fmt: skip
        if lacks is None and dact_lacks is None:
            _swiglu_gradient[(tokens, triton.cdiv(width, 1024))](*places, width, BLOCK=1024)
            return
        parts = [part or LowRank(act_TF[:, :0], act_TF[:, :0]) for part in (lacks, dact_lacks)]
        seats = [seat for part in parts for seat in (*_pointers(part), part.left_TK.shape[1])]
        _swiglu_gradient_lacking[_tiles(tokens, width)](
            *places, *seats, tokens, width, LACKS=lacks is not None, DACT_LACKS=dact_lacks is not None,
            BLOCK_K=_block(parts[0]), BLOCK_DK=_block(parts[1]), **_TILE,
        )  # fmt: skip

    def round_rows(self, x_TI: Tensor, columns_I: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens, width = x_TI.shape
        codes_TI = x_TI.new_empty(tokens, width, dtype=torch.float8_e4m3fn)
        scale_T = x_TI.new_empty(tokens, dtype=torch.float32)
        block = 1 << (width.bit_length() - 1)
        rest = max(16, triton.next_power_of_2(width - block))
        _round_rows[(tokens,)](
            codes_TI, scale_T, x_TI, x_TI.stride(0), columns_I if columns_I is not None else scale_T, width,
            HAS_COLUMNS=columns_I is not None, BLOCK=block, REST=rest, num_warps=max(4, min(_ROW_WARPS, block // 512)),
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


def _tiles(tokens: int, width: int) -> tuple[int, int]:
    return triton.cdiv(tokens, _TILE["BLOCK_T"]), triton.cdiv(width, _TILE["BLOCK_F"])


def _pointers(part: LowRank) -> tuple[Any, ...]:
    """left, its stride, right, its strides."""
    return part.left_TK, part.left_TK.stride(0), part.right_OK, *part.right_OK.stride()


def _block(part: LowRank) -> int:
    """Columns that hold a rank; matrix units want 16."""
    return max(16, triton.next_power_of_2(part.left_TK.shape[1]))


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))
