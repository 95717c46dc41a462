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

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from luthier.model import programs
from luthier.model.pointwise import Around, AroundGradients, LowRank, Plain, Rider

_PROGRAMS = 1024
"""Programs over which rows are dealt out where each adds up a weight's gradient."""

_SPLITS = 8
"""Programs among which the tokens are dealt out where each stays with some outputs."""

_TILE: dict[str, Any] = {"SPLITS": _SPLITS, "BLOCK_T": 16, "BLOCK_F": 64, "STAGES": 3, "num_warps": 4}
"""How the feed-forward activation is cut up where adapters are met on the way: the fastest of 66 ways on an H200.
Forward, where less is held at once, twice as many tokens are faster."""

_BOARDED = 4096
"""Numbers of an adapter that a program takes to their seats."""

_ROW_WARPS = 32
"""Warps that share a long row."""


class Fused:
    """One kernel each, on a CUDA device.  The last axis of every tensor is contiguous."""

    def norm(self, out: Tensor, h: Tensor, weight: Tensor, eps: float, also: Tensor | None = None) -> None:
        heads, rows, block = _rows(h)
        programs.norm[(rows,)](
            out, out.stride(0), out.stride(-2), h, h.stride(0), h.stride(-2), weight,
            also if also is not None else out, also.stride(0) if also is not None else 0, heads, h.shape[-1], eps,
            ALSO=also is not None, BLOCK=block, num_warps=_warps(block),
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
        count = min(rows, _PROGRAMS) if weight_moves else rows
        partial = h.new_empty(count, h.shape[-1], dtype=torch.float32) if weight_moves else None
        programs.norm_gradient[(count,)](
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
        programs.copy[(len(x_TD),)](
            out_TD, out_TD.stride(0), x_TD, x_TD.stride(0), x_TD.shape[1], BLOCK=block, num_warps=_warps(block)
        )

    def rotate(self, heads_TNE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> None:
        tokens, count, width = heads_TNE.shape
        programs.rotate[(tokens,)](
            heads_TNE, heads_TNE.stride(0), heads_TNE.stride(1), cos_TE, sin_TE, count,
            HALF=width // 2, BLOCK=triton.next_power_of_2(count),
        )  # fmt: skip

    def rotate_back(
        self, out_TNE: Tensor, dq_THE: Tensor, dk_TGE: Tensor, dv_TGE: Tensor, cos_TE: Tensor, sin_TE: Tensor
    ) -> None:
        tokens, heads, width = dq_THE.shape
        groups = dk_TGE.shape[1]
        parts = [number for part in (dq_THE, dk_TGE, dv_TGE) for number in (part, part.stride(0), part.stride(1))]
        programs.rotate_back[(tokens,)](
            out_TNE, out_TNE.stride(0), *parts, cos_TE, sin_TE, heads, groups, HALF=width // 2,
            BLOCK_H=triton.next_power_of_2(heads), BLOCK_G=triton.next_power_of_2(groups),
        )  # fmt: skip

    def swiglu(self, out_TF: Tensor, gate_up_TF: Tensor, lacks: LowRank | None) -> None:
        tokens, width = out_TF.shape
        if lacks is None:
            programs.swiglu[(tokens, triton.cdiv(width, 1024))](
                out_TF, out_TF.stride(0), gate_up_TF, gate_up_TF.stride(0), width, BLOCK=1024
            )
        else:
            programs.swiglu_lacking[_tiles(width)](
                out_TF, out_TF.stride(0), gate_up_TF, gate_up_TF.stride(0), *_pointers(lacks), tokens, width,
                BLOCK_K=_block(lacks.left_TK.shape[1]), **{**_TILE, "BLOCK_T": 32},
            )  # fmt: skip

    def swiglu_gradient(
        self,
        dgate_up_TF: Tensor,
        act_TF: Tensor | None,
        dact_TF: Tensor,
        gate_up_TF: Tensor,
        lacks: LowRank | None,
        dact_lacks: LowRank | None,
        around: Around | None,
    ) -> AroundGradients | None:
        tokens, width = dact_TF.shape
        act = act_TF if act_TF is not None else dact_TF
        places = (
            dgate_up_TF, dgate_up_TF.stride(0), act, act.stride(0), dact_TF, dact_TF.stride(0),
            gate_up_TF, gate_up_TF.stride(0),
        )  # fmt: skip
        if lacks is None and dact_lacks is None and around is None:
            programs.swiglu_gradient[(tokens, triton.cdiv(width, 1024))](
                *places, width, ACT=act_TF is not None, BLOCK=1024
            )
            return None
        nothing = dact_TF[:, :0]
        seats = [seat for part in (lacks, dact_lacks) for seat in _pointers(part or LowRank(nothing, nothing))]
        inner = around or Around(nothing, (0, 0), nothing)
        (of_gate, of_up), of_down = inner.ranks, inner.du_TK.shape[1]
        ranks = _block(max(of_gate, of_up, of_down))
        parts = dact_TF.new_empty(_SPLITS if around else 0, 3, ranks, width, dtype=torch.float32)
        programs.swiglu_gradient_adapted[_tiles(width)](
            *places, *seats, inner.u_TK, inner.u_TK.stride(0), of_gate, of_up, inner.du_TK, inner.du_TK.stride(0),
            of_down, parts, tokens, width,
            LACKS=lacks is not None, DACT_LACKS=dact_lacks is not None, ACT=act_TF is not None, AROUND=bool(around),
            BLOCK_K=_block(seats[5]), BLOCK_DK=_block(seats[11]), BLOCK_R=ranks, **_TILE,
        )  # fmt: skip
        if around is None:
            return None
        da_down, db_gate, db_up = parts.sum(0)
        return AroundGradients(da_down[:of_down], (db_gate[:of_gate].t(), db_up[:of_up].t()))

    def round_rows(self, x_TI: Tensor, columns_I: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens, width = x_TI.shape
        codes_TI = x_TI.new_empty(tokens, width, dtype=torch.float8_e4m3fn)
        scale_T = x_TI.new_empty(tokens, dtype=torch.float32)
        block = 1 << (width.bit_length() - 1)
        rest = max(16, triton.next_power_of_2(width - block))
        programs.round_rows[(tokens,)](
            codes_TI, scale_T, x_TI, x_TI.stride(0), columns_I if columns_I is not None else scale_T, width,
            HAS_COLUMNS=columns_I is not None, BLOCK=block, REST=rest, num_warps=max(4, min(_ROW_WARPS, block // 512)),
        )  # fmt: skip
        return codes_TI, scale_T

    def transpose(self, codes_OI: Tensor) -> Tensor:
        rows, columns = codes_OI.shape
        out_IO = codes_OI.new_empty(columns, rows)
        programs.transpose[(triton.cdiv(rows, 128), triton.cdiv(columns, 128))](
            out_IO.view(torch.int8), codes_OI.view(torch.int8), rows, columns, BLOCK=128, num_warps=8
        )
        return out_IO

    def score(self, logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, vocabulary = logits_RV.shape
        logprobs_R = logits_RV.new_empty(rows, dtype=torch.float32)
        correct_R = logits_RV.new_empty(rows, dtype=torch.bool)
        norm_R = torch.empty_like(logprobs_R)
        if rows:
            programs.score[(rows,)](
                logits_RV, logits_RV.stride(0), targets_R, logprobs_R, correct_R, norm_R, vocabulary,
                BLOCK=1024, STAGES=3, num_warps=1,
            )  # fmt: skip
        return logprobs_R, correct_R, norm_R

    def score_gradient(self, logits_RV: Tensor, targets_R: Tensor, norm_R: Tensor, dlogprobs_R: Tensor | None) -> None:
        rows, vocabulary = logits_RV.shape
        if rows:
            programs.score_gradient[(rows, triton.cdiv(vocabulary, 4096))](
                logits_RV, logits_RV.stride(0), targets_R, norm_R, dlogprobs_R if dlogprobs_R is not None else norm_R,
                vocabulary, HAS_GRADIENT=dlogprobs_R is not None, BLOCK=4096, num_warps=8,
            )  # fmt: skip

    def board(self, riders: Sequence[Rider]) -> Callable[[], None]:
        if any(not rider.matrix.is_contiguous() or rider.matrix.dtype != riders[0].matrix.dtype for rider in riders):
            return Plain().board(riders)
        table, known = torch.empty(0), list[int]()
        blocks = max((triton.cdiv(rider.seat.numel(), _BOARDED) for rider in riders), default=0)

        def go() -> None:
            nonlocal table, known
            if not riders:
                return
            # Weights may be moved between steps.
            places = [rider.matrix.data_ptr() for rider in riders]
            if places != known:
                known, table = places, _timetable(riders)
            programs.board[(len(riders), blocks)](table, riders[0].matrix, riders[0].seat, BLOCK=_BOARDED)

        return go


def _rows(h: Tensor) -> tuple[int, int, int]:
    """Heads of a token (1 for [T, D]), rows to be normed, and a block that holds one."""
    heads = h.shape[1] if h.ndim == 3 else 1
    return heads, h.shape[0] * heads, triton.next_power_of_2(h.shape[-1])


def _tiles(width: int) -> tuple[int, int]:
    return triton.cdiv(width, _TILE["BLOCK_F"]), _SPLITS


def _pointers(part: LowRank) -> tuple[Any, ...]:
    """left, its stride, right, its strides, the rank."""
    return part.left_TK, part.left_TK.stride(0), part.right_OK, *part.right_OK.stride(), part.left_TK.shape[1]


def _block(rank: int) -> int:
    """Columns that hold a rank; matrix units want 16."""
    return max(16, triton.next_power_of_2(rank))


def _warps(block: int) -> int:
    return max(1, min(16, block // 1024))


def _timetable(riders: Sequence[Rider]) -> Tensor:
    """For each rider where it comes from, its seat, how far apart the seat's rows are, their number and length, and
    the bits of its scale.  int64 [N, 6]"""
    scales = torch.tensor([rider.scale for rider in riders], dtype=torch.float64).view(torch.int64).tolist()
    rows = [
        [rider.matrix.data_ptr(), rider.seat.data_ptr(), rider.seat.stride(0), *rider.seat.shape, scale]
        for rider, scale in zip(riders, scales, strict=True)
    ]
    return torch.tensor(rows).to(riders[0].seat.device)
