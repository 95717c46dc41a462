"""The GPU programs behind `model.kernels`, in Triton.

A name with `_t`, `_n`, `_o` or `_k` behind it is a stride; BLOCK is how much a program holds at once.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportMissingImports=false
# pyright: reportPossiblyUnboundVariable=false
# pyright: reportUntypedFunctionDecorator=false, reportIndexIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def norm(
    out, out_t, out_n, h, h_t, h_n, weight, also, also_t, heads, width, eps, ALSO: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    t, n = row // heads, row % heads
    read = tl.load(h + t * h_t + n * h_n + at, mask=inside, other=0.0)
    if ALSO:
        tl.store(also + t * also_t + at, read, mask=inside)
    value = read.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + t * out_t + n * out_n + at, value * scale * gain, mask=inside)


@triton.jit
def norm_gradient(
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
def copy(out, out_t, x, x_t, width, BLOCK: tl.constexpr):
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
def rotate(heads, heads_t, heads_n, cos, sin, count, HALF: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    here = heads + t * heads_t
    _turned(here, here, heads_n, cos + t * 2 * HALF, sin + t * 2 * HALF, count, HALF, BLOCK, 1)


@triton.jit
def rotate_back(
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
def swiglu(out, out_t, gate_up, gate_up_t, width, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + t * gate_up_t + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + t * gate_up_t + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + t * out_t + at, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def swiglu_gradient(
    dgate_up, dgate_up_t, act, act_t, dact, dact_t, gate_up, gate_up_t, width, ACT: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + t * gate_up_t + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + t * gate_up_t + width + at, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dact + t * dact_t + at, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    if ACT:
        tl.store(act + t * act_t + at, silu * up, mask=inside)
    tl.store(dgate_up + t * dgate_up_t + at, gradient * up * (share + silu * (1 - share)), mask=inside)
    tl.store(dgate_up + t * dgate_up_t + width + at, gradient * silu, mask=inside)


@triton.jit
def _beside(left, left_t, t, k, inside):
    """Some tokens' rows of what an adapter holds in the middle, as they are or lying on their side."""
    return tl.load(left + t * left_t + k, mask=inside, other=0.0)


@triton.jit
def _outer(right, right_o, right_k, f, k, inside):
    """right_OK at some outputs, lying on its side."""
    return tl.load(right + f[None, :].to(tl.int64) * right_o + k[:, None] * right_k, mask=inside, other=0.0)


@triton.jit
def swiglu_lacking(
    out, out_t, gate_up, gate_up_t, left, left_t, right, right_o, right_k, rank, tokens, width,
    SPLITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    k = tl.arange(0, BLOCK_K)
    columns = f[None, :] < width
    of_gate = _outer(right, right_o, right_k, f, k, columns & (k[:, None] < rank))
    of_up = _outer(right, right_o, right_k, width + f, k, columns & (k[:, None] < rank))
    # A program stays with its outputs, whose part of the adapter it holds, and walks over the tokens.
    for start in tl.range(tl.program_id(1) * BLOCK_T, tokens, SPLITS * BLOCK_T, num_stages=STAGES):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        inside = (t[:, None] < tokens) & columns
        place = gate_up + t[:, None] * gate_up_t + f[None, :]
        gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
        u = _beside(left, left_t, t[:, None], k[None, :], (t[:, None] < tokens) & (k[None, :] < rank))
        gate = tl.dot(u, of_gate, gate, input_precision="ieee")
        up = tl.dot(u, of_up, up, input_precision="ieee")
        tl.store(out + t[:, None] * out_t + f[None, :], gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def swiglu_gradient_adapted(
    dgate_up, dgate_up_t, act, act_t, dact, dact_t, gate_up, gate_up_t,
    left, left_t, right, right_o, right_k, rank, dleft, dleft_t, dright, dright_o, dright_k, drank,
    u, u_t, gate_rank, up_rank, du, du_t, down_rank, parts, tokens, width,
    LACKS: tl.constexpr, DACT_LACKS: tl.constexpr, ACT: tl.constexpr, AROUND: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    k = tl.arange(0, BLOCK_K)
    dk = tl.arange(0, BLOCK_DK)
    r = tl.arange(0, BLOCK_R)
    columns = f[None, :] < width
    if LACKS:
        of_gate = _outer(right, right_o, right_k, f, k, columns & (k[:, None] < rank))
        of_up = _outer(right, right_o, right_k, width + f, k, columns & (k[:, None] < rank))
    if DACT_LACKS:
        of_down = _outer(dright, dright_o, dright_k, f, dk, columns & (dk[:, None] < drank))
    if AROUND:
        da_down = tl.zeros([BLOCK_R, BLOCK_F], dtype=tl.float32)
        db_gate = tl.zeros([BLOCK_R, BLOCK_F], dtype=tl.float32)
        db_up = tl.zeros([BLOCK_R, BLOCK_F], dtype=tl.float32)
    for start in tl.range(tl.program_id(1) * BLOCK_T, tokens, SPLITS * BLOCK_T, num_stages=STAGES):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        rows = t[:, None] < tokens
        inside = rows & columns
        place = gate_up + t[:, None] * gate_up_t + f[None, :]
        gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dact + t[:, None] * dact_t + f[None, :], mask=inside, other=0.0).to(tl.float32)
        if LACKS:
            lacks = _beside(left, left_t, t[:, None], k[None, :], rows & (k[None, :] < rank))
            gate = tl.dot(lacks, of_gate, gate, input_precision="ieee")
            up = tl.dot(lacks, of_up, up, input_precision="ieee")
        if DACT_LACKS:
            lacks = _beside(dleft, dleft_t, t[:, None], dk[None, :], rows & (dk[None, :] < drank))
            gradient = tl.dot(lacks, of_down, gradient, input_precision="ieee")
        share = tl.sigmoid(gate)
        silu = gate * share
        value = (silu * up).to(act.dtype.element_ty)
        dgate = (gradient * up * (share + silu * (1 - share))).to(act.dtype.element_ty)
        dup = (gradient * silu).to(act.dtype.element_ty)
        if ACT:
            tl.store(act + t[:, None] * act_t + f[None, :], value, mask=inside)
        target = dgate_up + t[:, None] * dgate_up_t + f[None, :]
        tl.store(target, dgate, mask=inside)
        tl.store(target + width, dup, mask=inside)
        if AROUND:
            seen = t[None, :] < tokens
            of_t = _beside(du, du_t, t[None, :], r[:, None], seen & (r[:, None] < down_rank))
            da_down = tl.dot(of_t, value, da_down, input_precision="ieee")
            of_t = _beside(u, u_t, t[None, :], r[:, None], seen & (r[:, None] < gate_rank))
            db_gate = tl.dot(of_t, dgate, db_gate, input_precision="ieee")
            of_t = _beside(u, u_t, t[None, :], gate_rank + r[:, None], seen & (r[:, None] < up_rank))
            db_up = tl.dot(of_t, dup, db_up, input_precision="ieee")
    if AROUND:
        part = BLOCK_R * width.to(tl.int64)
        seat = parts + tl.program_id(1) * 3 * part + r[:, None] * width + f[None, :]
        tl.store(seat, da_down, mask=columns)
        tl.store(seat + part, db_gate, mask=columns)
        tl.store(seat + 2 * part, db_up, mask=columns)


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
def round_rows(
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
def transpose(out, x, rows, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(x + row[:, None].to(tl.int64) * columns + column[None, :], mask=inside)
    tl.store(out + column[:, None].to(tl.int64) * rows + row[None, :], tl.trans(tile), mask=tl.trans(inside))


@triton.jit
def score(logits, logits_r, targets, logprobs, correct, norms, vocabulary, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + r)
    # The running maximum is one number, so that each logit costs one exponential; where it stands, lane by lane.
    lane = tl.arange(0, BLOCK)
    top = tl.full([], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    where = tl.zeros([BLOCK], dtype=tl.int32)
    for start in tl.range(0, vocabulary, BLOCK, num_stages=STAGES):
        inside = start + lane < vocabulary
        value = tl.load(logits + r * logits_r + start + lane, mask=inside, other=float("-inf")).to(tl.float32)
        where = tl.where(value > best, start, where)
        best = tl.maximum(value, best)
        high = tl.max(value, 0)
        if high > top:
            total = total * tl.exp(top - high)
            top = high
        # 2^(a x - a top), which is one multiply-add and one exponential.
        total += tl.exp2(value * LOG2_E - top * LOG2_E)
    norm = top + tl.log(tl.sum(total, 0))
    # Of equal logits the first counts, as in torch.argmax.
    likeliest = tl.min(tl.where(best == top, where + lane, vocabulary), 0)
    tl.store(norms + r, norm)
    tl.store(logprobs + r, tl.load(logits + r * logits_r + target).to(tl.float32) - norm)
    tl.store(correct + r, likeliest == target)


@triton.jit
def score_gradient(
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


@triton.jit
def board(table, source_like, seat_like, BLOCK: tl.constexpr):
    row = table + tl.program_id(0) * 6
    source = tl.load(row).to(tl.pointer_type(source_like.dtype.element_ty))
    seat = tl.load(row + 1).to(tl.pointer_type(seat_like.dtype.element_ty))
    apart, rows, length = tl.load(row + 2), tl.load(row + 3).to(tl.int32), tl.load(row + 4).to(tl.int32)
    scale = tl.load(row + 5).to(tl.float64, bitcast=True).to(tl.float32)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < rows * length
    value = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(seat + at // length * apart + at % length, value * scale, mask=inside)
