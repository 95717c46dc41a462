"""Losses of embeddings as plain functions of tensors.

Legend: P pairs of texts, Q queries, C candidates, D width.

Sources: sentence-transformers' CosineSimilarityLoss, CoSENTLoss, MultipleNegativesRankingLoss and MatryoshkaLoss, each
summed where the reference takes a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def cosines(first_PD: Tensor, second_PD: Tensor) -> Tensor:
    """Cosine of each pair.  [P]"""
    return (F.normalize(first_PD, dim=-1) * F.normalize(second_PD, dim=-1)).sum(-1)


def cosine_losses(first_PD: Tensor, second_PD: Tensor, scores_P: Tensor) -> Tensor:
    """(cosine - score)^2 of each pair.  [P]"""
    return (cosines(first_PD, second_PD) - scores_P) ** 2


def cosent_loss(first_PD: Tensor, second_PD: Tensor, scores_P: Tensor, scale: float) -> Tensor:
    """log(1 + sum exp(scale x (cos_i - cos_j))) over all i, j where pair i is less alike than pair j.  []

    Only the order of the scores matters, and every pair is compared with every other (Su, CoSENT, 2022).
    """
    cosines_P = cosines(first_PD, second_PD) * scale
    wrong_PP = cosines_P[:, None] - cosines_P[None, :]
    wrong = wrong_PP[scores_P[:, None] < scores_P[None, :]]
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), dim=0)


def infonce_losses(
    queries_QD: Tensor, candidates_CD: Tensor, own_Q: Tensor, allowed_QC: Tensor, temperature: float
) -> Tensor:
    """-log softmax of each query's own candidate among those it is compared with.  [Q]

    Args:
        own_Q: which candidate belongs to each query.
        allowed_QC: candidates each query is compared with; its own must be among them.
    """
    logits_QC = F.normalize(queries_QD, dim=-1) @ F.normalize(candidates_CD, dim=-1).T / temperature
    return F.cross_entropy(logits_QC.masked_fill(~allowed_QC, -torch.inf), own_Q, reduction="none")


def matryoshka(
    loss: Callable[[Tensor], Tensor], embeddings_SD: Tensor, widths: Sequence[int], weights: Sequence[float]
) -> Tensor:
    """Sum of a loss over the first numbers of each embedding (Kusupati et al. 2022), each width with its weight."""
    total = embeddings_SD.new_zeros(())
    for width, weight in zip(widths, weights, strict=True):
        total = total + weight * loss(embeddings_SD[:, :width])
    return total
