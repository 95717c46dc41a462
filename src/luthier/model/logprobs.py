"""Per-token log-probabilities, without ever holding all rows times the whole vocabulary when that is large.

Legend: T packed tokens, R trained positions among them, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""hidden_RD -> logits_RV"""

# float32 logits of one chunk: 128 MiB on a CPU, 1 GiB on a GPU.
_CHUNK_ELEMENTS = {"cpu": 2**25}
_CHUNK_ELEMENTS_DEFAULT = 2**28


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows whose logits are held at once."""
    return max(1, _CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS_DEFAULT) // vocabulary)


def token_logprobs(
    head: Head, hidden_TD: Tensor, targets_T: Tensor, trained_R: Tensor, *, rows_at_once: int
) -> tuple[Tensor, Tensor]:
    """log p(target) and whether the target is the likeliest token, at `trained_R` (0 and False elsewhere).

    trained_R: int64, each position at most once.  Other rows never meet the head.  More than `rows_at_once` rows go
    through it in chunks whose logits are computed again in the backward pass instead of being kept.

    Returns:
        logprobs_T: float32, with a graph to hidden_TD and the head's weights even when no row is trained.
        correct_T: bool.
    """
    hidden_RD, targets_R = hidden_TD.index_select(0, trained_R), targets_T.index_select(0, trained_R)
    if len(trained_R) <= rows_at_once:
        logprobs_R, correct_R = _score(head, hidden_RD, targets_R)
    else:
        pieces = [
            _score_again_in_backward(head, hidden, targets)
            for hidden, targets in zip(hidden_RD.split(rows_at_once), targets_R.split(rows_at_once), strict=True)
        ]
        logprobs_R = torch.cat([logprobs for logprobs, _ in pieces])
        correct_R = torch.cat([correct for _, correct in pieces])
    logprobs_T = logprobs_R.new_zeros(len(targets_T)).index_copy(0, trained_R, logprobs_R)
    correct_T = correct_R.new_zeros(len(targets_T)).index_copy(0, trained_R, correct_R)
    return logprobs_T, correct_T


def _score(head: Head, hidden_RD: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    logits_RV = head(hidden_RD).float()
    logprobs_R = -cross_entropy(logits_RV, targets_R, reduction="none")
    return logprobs_R, logits_RV.detach().argmax(dim=1) == targets_R


def _score_again_in_backward(head: Head, hidden_RD: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    # The head draws no random numbers, so their state need not be kept.
    return checkpoint(  # pyright: ignore[reportReturnType]
        _score, head, hidden_RD, targets_R, use_reentrant=False, preserve_rng_state=False
    )
