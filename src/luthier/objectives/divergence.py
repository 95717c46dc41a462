"""How far a student's predictions are from its teacher's, as plain functions of tensors.

Legend: R positions, V vocabulary, K tokens the teacher's numbers are known of.

Sources: Hinton et al. 2015; TRL's generalized_jsd_loss (Agarwal et al. 2024, eq. 1), whose ends at beta 0 and 1 are the
forward and the reverse divergence.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["forward", "reverse", "jsd"]


def divergences(student_RV: Tensor, teacher_RV: Tensor, kind: Kind, temperature: float, beta: float = 0.5) -> Tensor:
    """Divergence at each position, both sides softened by the temperature.  float32 [R]

    forward: KL(teacher | student), the student must cover what the teacher does.  reverse: KL(student | teacher), it
    must do nothing that the teacher does not.  jsd: beta x KL(teacher | m) + (1 - beta) x KL(student | m) with
    m = beta x teacher + (1 - beta) x student.

    Args:
        student_RV, teacher_RV: logits.
    """
    return between(
        F.log_softmax(student_RV.float() / temperature, dim=-1),
        F.log_softmax(teacher_RV.float() / temperature, dim=-1),
        kind,
        beta,
    )


def between(student_RV: Tensor, teacher_RV: Tensor, kind: Kind, beta: float = 0.5) -> Tensor:
    """As `divergences`, of log-probabilities.  [R]"""
    if kind == "forward":
        return _kl(teacher_RV, student_RV)
    if kind == "reverse":
        return _kl(student_RV, teacher_RV)
    between_RV = torch.logaddexp(teacher_RV + math.log(beta), student_RV + math.log1p(-beta))
    return beta * _kl(teacher_RV, between_RV) + (1 - beta) * _kl(student_RV, between_RV)


def sparse_divergences(
    student_RV: Tensor, ids_RK: Tensor, teacher_RK: Tensor, kind: Kind, temperature: float, beta: float = 0.5
) -> Tensor:
    """Divergence where only the teacher's K likeliest tokens are known: all others count as one more token.  [R]

    It is at most the whole divergence, and equal to it where K is the vocabulary, or all of it but one.

    Args:
        student_RV: logits.
        teacher_RK: log-probabilities at this temperature, of the tokens ids_RK.
    """
    student_RV = F.log_softmax(student_RV.float() / temperature, dim=-1)
    known_RK = student_RV.gather(1, ids_RK)
    if ids_RK.shape[1] == student_RV.shape[1]:  # there are no others
        return between(known_RK, teacher_RK, kind, beta)
    rest_RV = student_RV.scatter(1, ids_RK, -torch.inf)
    student = torch.cat([known_RK, torch.logsumexp(rest_RV, dim=1, keepdim=True)], dim=1)
    return between(student, torch.cat([teacher_RK, _rest(teacher_RK)], dim=1), kind, beta)


def _rest(logprobs_RK: Tensor) -> Tensor:
    """log(1 - sum of the probabilities), kept finite.  [R, 1]"""
    return torch.log((1 - logprobs_RK.exp().sum(dim=1, keepdim=True)).clamp(min=1e-8))


def _kl(true_RV: Tensor, other_RV: Tensor) -> Tensor:
    return F.kl_div(other_RV, true_RV, reduction="none", log_target=True).sum(-1)
