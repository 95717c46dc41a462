"""Invariants 4 and 6: chunked log-probabilities equal the naive ones, and so do all their gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.model import logprobs as module
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.logprobs import Score, chunk_rows, score_by_autograd, score_by_hand, token_logprobs
from luthier.model.methods import apply
from luthier.model.pointwise import Plain

ROWS, VOCABULARY, WIDTH = 23, 50, 8


def problem(trained: str) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY)
    head.weight.requires_grad_("weight" in trained)
    head.bias.requires_grad_("bias" in trained)
    hidden_TD = torch.randn(ROWS, WIDTH, requires_grad="hidden" in trained)
    weights_T = (torch.arange(ROWS) % 3 != 0).float() * torch.linspace(0.5, 2, ROWS)
    return head, hidden_TD, torch.randint(VOCABULARY, (ROWS,)), weights_T


def positions(weights_T: Tensor) -> Tensor:
    return weights_T.nonzero().squeeze(1)


def by_autograd(head: nn.Linear, rows_at_once: int) -> Score:
    return partial(score_by_autograd, head, rows_at_once=rows_at_once)


@pytest.mark.parametrize("rows_at_once", [1, 4, 5, 15, 1000])
@pytest.mark.parametrize("trained", ["hidden weight bias", "hidden", "weight bias"])
def test_chunked_equals_naive_with_gradients(rows_at_once: int, trained: str) -> None:
    head, hidden_TD, targets_T, weights_T = problem(trained)
    leaves = [tensor for tensor in (hidden_TD, head.weight, head.bias) if tensor.requires_grad]
    logits_TV = head(hidden_TD)
    naive_T = logits_TV.log_softmax(dim=1).gather(1, targets_T[:, None])[:, 0] * (weights_T != 0)
    expected = torch.autograd.grad((naive_T * weights_T).sum(), leaves)
    logprobs_T, correct_T = token_logprobs(by_autograd(head, rows_at_once), hidden_TD, targets_T, positions(weights_T))
    torch.testing.assert_close(logprobs_T, naive_T)
    assert torch.equal(correct_T, (logits_TV.argmax(dim=1) == targets_T) & (weights_T != 0))
    got = torch.autograd.grad((logprobs_T * weights_T).sum(), leaves)
    for ours, naive in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, naive)
        assert naive.any()


@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 4, 1000])
@pytest.mark.parametrize("trained", ["hidden weight", "hidden", "weight"])
def test_by_hand_equals_naive_with_gradients(rows_at_once: int, trained: str, keep_logits: bool) -> None:
    head, hidden_TD, targets_T, weights_T = problem(trained)
    leaves = [tensor for tensor in (hidden_TD, head.weight) if tensor.requires_grad]
    naive_T = (hidden_TD @ head.weight.t()).log_softmax(dim=1).gather(1, targets_T[:, None])[:, 0] * (weights_T != 0)
    expected = torch.autograd.grad((naive_T * weights_T).sum(), leaves)
    by_hand = partial(score_by_hand, head.weight, rows_at_once=rows_at_once, keep_logits=keep_logits, pointwise=Plain())
    logprobs_T, correct_T = token_logprobs(by_hand, hidden_TD, targets_T, positions(weights_T))
    torch.testing.assert_close(logprobs_T, naive_T)
    assert torch.equal(correct_T, ((hidden_TD @ head.weight.t()).argmax(dim=1) == targets_T) & (weights_T != 0))
    got = torch.autograd.grad((logprobs_T * weights_T).sum(), leaves)
    for ours, naive in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, naive)
        assert naive.any()


def test_rows_without_weight_never_meet_the_head() -> None:
    head, hidden_TD, targets_T, weights_T = problem("hidden")
    seen: list[int] = []
    head.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    token_logprobs(by_autograd(head, 4), hidden_TD, targets_T, positions(weights_T))
    assert max(seen) <= 4 and sum(seen) == int((weights_T != 0).sum())


def test_no_trained_row_gives_zeros_with_a_graph() -> None:
    head, hidden_TD, targets_T, _ = problem("hidden weight bias")
    logprobs_T, correct_T = token_logprobs(by_autograd(head, 4), hidden_TD, targets_T, positions(torch.zeros(ROWS)))
    assert not logprobs_T.any() and not correct_T.any()
    logprobs_T.sum().backward()
    assert hidden_TD.grad is not None and head.weight.grad is not None and not head.weight.grad.any()


def test_half_precision_logits_are_summed_in_float32() -> None:
    head, hidden_TD, targets_T, weights_T = problem("hidden")
    exact, _ = token_logprobs(by_autograd(head, 100), hidden_TD, targets_T, positions(weights_T))
    half = head.to(torch.bfloat16)
    logprobs_T, _ = token_logprobs(
        by_autograd(half, 100), hidden_TD.to(torch.bfloat16), targets_T, positions(weights_T)
    )
    assert logprobs_T.dtype == torch.float32
    assert (logprobs_T - exact).abs().max() < 0.05


def test_large_vocabularies_are_chunked_and_small_ones_are_not() -> None:
    cpu = torch.device("cpu")
    assert chunk_rows(400, cpu) > 8192
    assert 64 < chunk_rows(152_000, cpu) < 1024
    assert chunk_rows(10**12, cpu) == 1


def loaded(folder: Path, method: Method) -> Model:
    config = ModelConfig(path=str(folder))
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(1)
    apply(model, method)
    return model


def batch_of() -> Batch:
    rng = np.random.default_rng(0)
    groups = []
    for n in (12, 7, 20):
        weights = (rng.random(n) < 0.6).astype(np.float32)
        weights[0] = 0
        groups.append(Group((Tokens(rng.integers(3, 390, n).astype(np.int32), weights),)))
    return collate(groups, range(3))


@pytest.mark.parametrize(
    ("shape", "method"),
    [
        ("qwen2", Full()),
        ("qwen2-untied", Full()),
        ("gemma2", Full()),
        ("granite", Full()),
        ("qwen2", Lora(rank=4)),
        ("qwen2-untied", Lora(rank=4, target=("q_proj", "lm_head"))),
        ("qwen2-untied", Lora(rank=4, modules_to_save=("lm_head",))),
    ],
    ids=["tied", "untied", "soft cap", "scaled", "frozen", "adapted head", "saved head"],
)
def test_every_kind_of_head_chunked_equals_the_whole_model(
    shape: str, method: Method, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = loaded(tiny_model_dir(shape), method), batch_of()
    leaves = list(model.trained().values())
    naive: list[Tensor] = []
    for start, end in zip(batch.offsets, batch.offsets[1:], strict=False):
        logits_LV = model.network(input_ids=batch.ids_T[None, start:end]).logits[0]
        naive.append(logits_LV.log_softmax(dim=1).gather(1, batch.targets_T[start:end, None])[:, 0])
    naive_T = torch.cat(naive) * (batch.weights_T != 0)
    expected = torch.autograd.grad(naive_T.sum(), leaves)
    monkeypatch.setitem(module._CHUNK_ELEMENTS, "cpu", model.vocabulary * 3)
    logprobs_T, _ = model.logprobs(batch)
    torch.testing.assert_close(logprobs_T, naive_T, rtol=1e-4, atol=1e-4)
    for got, want in zip(torch.autograd.grad(logprobs_T.sum(), leaves), expected, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm() + 1e-6
