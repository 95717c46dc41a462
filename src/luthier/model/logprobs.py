"""Per-token log-probabilities, without ever holding all rows times the whole vocabulary when that is large.

Legend: T packed tokens, R trained positions among them, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from luthier.model.blas import add_product, multiply
from luthier.model.counted import on_gpu
from luthier.model.pointwise import Pointwise

Head = Callable[[Tensor], Tensor]
"""hidden_RD -> logits_RV"""

Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden_RD, targets_R) -> logprobs_R and correct_R"""

# Logits held at once: 128 MiB of float32 on a CPU.  On a GPU 1,024 rows of 152,000, and where memory is not short 2,304
# (5.7 % faster than 1,536, on an H200): their product with 3,584 columns is 252 tiles, which fill 132 processors almost
# twice.  Where a head of 0.5 billion weights moves, 1,024 rows at once save 0.14 GiB and cost 2 % of a step.
_CHUNK_ELEMENTS = {"cpu": 2**25}
_CHUNK_ELEMENTS_DEFAULT = 160_000_000
_CHUNK_ELEMENTS_ROOMY = 352_000_000
_TILE = 256


def chunk_rows(vocabulary: int, device: torch.device, *, roomy: bool = False) -> int:
    """Rows whose logits are held at once, in whole tiles where they are many."""
    default = _CHUNK_ELEMENTS_ROOMY if roomy else _CHUNK_ELEMENTS_DEFAULT
    rows = _CHUNK_ELEMENTS.get("cuda" if on_gpu(device) else device.type, default) // vocabulary
    return max(1, rows // _TILE * _TILE or rows)


def token_logprobs(score: Score, hidden_TD: Tensor, targets_T: Tensor, trained_R: Tensor) -> tuple[Tensor, Tensor]:
    """log p(target) and whether the target is the likeliest token, at `trained_R` (0 and False elsewhere).

    trained_R: int64, each position at most once.  Other rows never meet the head.

    Returns:
        logprobs_T: float32, with a graph to hidden_TD and the head's weights even when no row is trained.
        correct_T: bool.
    """
    logprobs_R, correct_R = score(hidden_TD.index_select(0, trained_R), targets_T.index_select(0, trained_R))
    logprobs_T = logprobs_R.new_zeros(len(targets_T)).index_copy(0, trained_R, logprobs_R)
    correct_T = correct_R.new_zeros(len(targets_T)).index_copy(0, trained_R, correct_R)
    return logprobs_T, correct_T


def score_by_autograd(head: Head, hidden_RD: Tensor, targets_R: Tensor, *, rows_at_once: int) -> tuple[Tensor, Tensor]:
    """For any head.  More than `rows_at_once` rows go through it in chunks, computed again in the backward pass."""
    if len(targets_R) <= rows_at_once:
        return _score(head, hidden_RD, targets_R)
    pieces = [
        # The head draws no random numbers, so their state need not be kept.
        checkpoint(_score, head, hidden, targets, use_reentrant=False, preserve_rng_state=False)
        for hidden, targets in zip(hidden_RD.split(rows_at_once), targets_R.split(rows_at_once), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in pieces]), torch.cat([correct for _, correct in pieces])


def _score(head: Head, hidden_RD: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    logits_RV = head(hidden_RD).float()
    logprobs_R = -cross_entropy(logits_RV, targets_R, reduction="none")
    return logprobs_R, logits_RV.detach().argmax(dim=1) == targets_R


def score_by_hand(
    weight_VD: Tensor,
    hidden_RD: Tensor,
    targets_R: Tensor,
    *,
    rows_at_once: int,
    keep_logits: bool,
    pointwise: Pointwise,
) -> tuple[Tensor, Tensor]:
    """For a head that is one matrix, in the hidden states' type.

    A frozen head is met once: what flows back to a row is its loss's derivative times a vector that the forward pass
    already knows.  For a head that moves, the logits are kept, or computed again chunk by chunk.
    """
    return _ByHand.apply(hidden_RD, weight_VD, targets_R, rows_at_once, keep_logits, pointwise)


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        targets_R: Tensor,
        rows: int,
        keep_logits: bool,
        pointwise: Pointwise,
    ) -> tuple[Tensor, Tensor]:
        weight = weight_VD.to(hidden_RD.dtype)
        hidden_moves, head_moves = ctx.needs_input_grad[:2]
        if keep_logits and head_moves:
            rows = max(1, len(targets_R))  # all of them are held anyway
        logprobs_R = hidden_RD.new_empty(len(targets_R), dtype=torch.float32)
        correct_R = torch.empty_like(targets_R, dtype=torch.bool)
        norm_R = torch.empty_like(logprobs_R)
        unit_RD = torch.empty_like(hidden_RD) if hidden_moves and not head_moves else None
        kept: list[Tensor] = []
        for start in range(0, len(targets_R), rows):
            part = slice(start, start + rows)
            logits_RV = multiply(hidden_RD[part], weight.t())
            logprobs_R[part], correct_R[part], norm_R[part] = pointwise.score(logits_RV, targets_R[part])
            if unit_RD is not None:
                pointwise.score_gradient(logits_RV, targets_R[part], norm_R[part], None)
                multiply(logits_RV, weight, out=unit_RD[part])
            elif keep_logits and head_moves:
                kept.append(logits_RV)
            del logits_RV  # before the next chunk is made
        if unit_RD is not None:
            ctx.save_for_backward(unit_RD)
        else:
            ctx.save_for_backward(hidden_RD, weight_VD, targets_R, norm_R)
        ctx.head_moves, ctx.rows, ctx.kept, ctx.pointwise = head_moves, rows, kept, pointwise
        ctx.mark_non_differentiable(correct_R)
        return logprobs_R, correct_R

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dlogprobs_R: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ctx.head_moves:
            (unit_RD,) = ctx.saved_tensors
            return (unit_RD * dlogprobs_R[:, None]).to(unit_RD.dtype), None, None, None, None, None
        hidden_RD, weight_VD, targets_R, norm_R = ctx.saved_tensors
        kept, ctx.kept = ctx.kept[::-1], []
        weight = weight_VD.to(hidden_RD.dtype)
        dhidden_RD = torch.empty_like(hidden_RD)
        # The gradient of a whole vocabulary is added to the one that is there already, rather than held a second time.
        there = weight_VD.grad if weight_VD.is_leaf else None
        in_place = there is not None and there.dtype == torch.float32
        dweight_VD = there if in_place else torch.zeros_like(weight_VD, dtype=torch.float32)
        assert dweight_VD is not None
        for start in range(0, len(targets_R), ctx.rows):
            part = slice(start, start + ctx.rows)
            logits_RV = kept.pop() if kept else multiply(hidden_RD[part], weight.t())
            ctx.pointwise.score_gradient(logits_RV, targets_R[part], norm_R[part], dlogprobs_R[part])
            multiply(logits_RV, weight, out=dhidden_RD[part])
            add_product(dweight_VD, logits_RV.t(), hidden_RD[part])
            del logits_RV
        return dhidden_RD, None if in_place else dweight_VD, None, None, None, None
