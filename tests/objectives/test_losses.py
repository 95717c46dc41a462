"""Contrastive and distillation losses on fixed batches: written out, and against their references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.objectives import similarity
from luthier.objectives.divergence import Kind, divergences, sparse_divergences


def rows(count: int, width: int = 16, seed: int = 0) -> Tensor:
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_()


def same(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    """Values and gradients."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    for mine, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        assert float((mine - other).abs().max()) < 1e-5


class Given(torch.nn.Module):
    """A model of sentence-transformers that has its embeddings ready."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["sentence_embedding"]}

    def get_embedding_dimension(self) -> int:
        return 16


def features(*parts: Tensor) -> list[dict[str, Tensor]]:
    return [{"sentence_embedding": part} for part in parts]


def losses() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sentence_transformers.sentence_transformer.losses")


@pytest.mark.peer
def test_cosine_equals_sentence_transformers():
    one, other, scores = rows(6), rows(6, seed=1), torch.linspace(0, 1, 6)
    theirs = losses().CosineSimilarityLoss(Given())(features(one, other), scores)
    same(similarity.cosine_losses(one, other, scores).mean(), theirs, [one, other])


@pytest.mark.peer
def test_cosent_equals_sentence_transformers():
    one, other, scores = rows(6), rows(6, seed=1), torch.tensor([0.1, 0.9, 0.9, 0.3, 0.0, 0.5])
    theirs = losses().CoSENTLoss(Given(), scale=20.0)(features(one, other), scores)
    same(similarity.cosent_loss(one, other, scores, 20.0), theirs, [one, other])


@pytest.mark.peer
@pytest.mark.parametrize("hard", [0, 2])
def test_infonce_equals_multiple_negatives_ranking(hard: int):
    queries, parts = rows(5), [rows(5, seed=seed) for seed in range(1, 2 + hard)]
    theirs = losses().MultipleNegativesRankingLoss(Given(), scale=20.0)(features(queries, *parts), torch.empty(0))
    candidates = torch.cat(parts)
    allowed = torch.ones(5, len(candidates), dtype=torch.bool)
    ours = similarity.infonce_losses(queries, candidates, torch.arange(5), allowed, temperature=0.05)
    same(ours.mean(), theirs, [queries, *parts])


@pytest.mark.peer
def test_matryoshka_equals_sentence_transformers():
    queries, good = rows(5), rows(5, seed=1)
    model = Given()
    inner = losses().MultipleNegativesRankingLoss(model, scale=20.0)
    theirs = losses().MatryoshkaLoss(model, inner, [16, 8, 4], [1, 1, 0.5])(features(queries, good), torch.arange(5))

    def loss(both_SD: Tensor) -> Tensor:
        allowed = torch.ones(5, 5, dtype=torch.bool)
        return similarity.infonce_losses(both_SD[:5], both_SD[5:], torch.arange(5), allowed, 0.05).mean()

    ours = similarity.matryoshka(loss, torch.cat([queries, good]), [16, 8, 4], [1, 1, 0.5])
    same(ours, theirs, [queries, good])


def test_infonce_does_not_compare_with_what_is_not_allowed():
    queries, candidates = rows(2), rows(3, seed=1)
    allowed = torch.tensor([[True, False, True], [True, True, True]])
    one, two = similarity.infonce_losses(queries, candidates, torch.tensor([0, 1]), allowed, 0.1)
    cosines = F.normalize(queries, dim=1) @ F.normalize(candidates, dim=1).T / 0.1
    assert one.item() == pytest.approx((torch.logsumexp(cosines[0, [0, 2]], 0) - cosines[0, 0]).item(), rel=1e-3)
    assert two.item() == pytest.approx((torch.logsumexp(cosines[1], 0) - cosines[1, 1]).item(), rel=1e-3)


def test_cosent_is_zero_for_equal_scores_and_counts_every_wrong_order():
    one, other = rows(3), rows(3, seed=1)
    assert similarity.cosent_loss(one, other, torch.ones(3), 20.0).item() == 0.0
    cosines = similarity.cosines(one, other)
    wrong = [math.exp(5 * (cosines[i] - cosines[j]).item()) for i, j in ((0, 1), (0, 2), (2, 1))]
    ours = similarity.cosent_loss(one, other, torch.tensor([0.0, 1.0, 0.5]), 5.0)
    assert ours.item() == pytest.approx(math.log(1 + sum(wrong)), rel=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.5), ("jsd", 0.1)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_equal_trls_gkd(kind: Kind, beta: float, temperature: float):
    trainer = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    student, teacher = rows(7, 30), rows(7, 30, seed=1)
    theirs = trainer.GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], labels=torch.zeros(1, 7, dtype=torch.int64), beta=beta, temperature=temperature
    )
    ours = divergences(student, teacher, kind, temperature, beta=beta if kind == "jsd" else 0.5)
    same(ours.mean(), theirs, [student, teacher])


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_a_model_does_not_diverge_from_itself(kind: Kind):
    logits = rows(4, 20)
    assert divergences(logits, logits.detach().clone(), kind, 2.0).abs().max().item() < 1e-6


def test_forward_divergence_equals_torchs_kl_and_cross_entropy_less_entropy():
    student, teacher = rows(4, 20), rows(4, 20, seed=1)
    truth = F.softmax(teacher / 2, -1)
    entropy = -(truth * truth.log()).sum(-1)
    theirs = F.cross_entropy(student / 2, truth, reduction="none") - entropy
    assert torch.allclose(divergences(student, teacher, "forward", 2.0), theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_few_known_tokens_give_a_lower_bound_that_is_reached(kind: Kind):
    student, teacher = rows(6, 20), rows(6, 20, seed=1).detach()
    whole = divergences(student, teacher, kind, 2.0)
    logprobs = F.log_softmax(teacher / 2.0, dim=-1)
    before = torch.zeros(6)
    for known in (1, 5, 12, 19):
        top, ids = logprobs.topk(known, dim=-1)
        now = sparse_divergences(student, ids, top, kind, 2.0)
        assert (now >= before - 1e-5).all() and (now <= whole + 1e-5).all()
        before = now.detach()
    same(sparse_divergences(student, ids, top, kind, 2.0).sum(), whole.sum(), [student])
