"""What holds a model to its start: formulas, a step that does not depend on how it is cut, and the start itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.engine.mesh import open_mesh
from luthier.engine.step import begin, evaluate
from luthier.model import methods
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.method import Prompt
from luthier.model.noise import Noise
from luthier.objectives.config import Retain, Sft
from luthier.objectives.elastic import ewc, fisher_information, l2sp
from luthier.objectives.language import Language
from luthier.objectives.like_start import Anchor, LikeStart
from luthier.objectives.penalised import Penalised
from luthier.objectives.start import Start

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def applied(folder: Path, method: Method) -> Model:
    config = ModelConfig(path=str(folder))
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, method)
    return model


def moved(model: Model) -> Model:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.trained().values():
            weight += 0.05 * torch.randn_like(weight)
    return model


def groups() -> list[Group]:
    rng = np.random.default_rng(0)
    return [
        Group((Tokens(rng.integers(3, 300, n).astype(np.int32), np.r_[0, 0, np.ones(n - 2)].astype(np.float32)),))
        for n in (7, 5, 9, 6)
    ]


def batches(*cuts: int) -> list[Batch]:
    every, found, start = groups(), list[Batch](), 0
    for count in cuts:
        found.append(collate(every[start : start + count], range(start, start + count)))
        start += count
    return found


class _Plain(Language):
    """Language without a renderer, which only encoding needs."""

    def __init__(self) -> None:
        self.train_on = "all"


@pytest.mark.parametrize("method", [Full(), Lora(rank=2), Prompt(virtual_tokens=3)])
def test_the_start_is_the_model_as_it_was(method: Method, tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir(), method)
    (batch,) = batches(4)
    with torch.no_grad():
        first = model.hidden(batch)
    start = Start(model)
    Noise(model, alpha=5.0, seed=0)
    moved(model).train_mode()
    now = {name: weight.detach().clone() for name, weight in model.trained().items()}
    before = start.hidden(batch)
    assert torch.equal(before, first) and not before.requires_grad
    assert model.network.training and all(torch.equal(w, now[name]) for name, w in model.trained().items())
    assert not torch.allclose(model.hidden(batch), first, atol=1e-3)
    bare = Start(model, bare=True)
    if isinstance(method, Prompt):
        plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir())
        ids = batch.ids_T[:7][None]
        torch.testing.assert_close(bare.hidden(batch)[:7], plain.model(ids)[0][0], atol=1e-5, rtol=1e-5)


def test_the_start_is_held_narrow_where_nothing_is_lost(tiny_model_dir: Callable[..., Path]) -> None:
    config = ModelConfig(path=str(tiny_model_dir()), dtype="bfloat16")
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    methods.apply(model, Full())
    with torch.no_grad():
        for weight in model.trained().values():
            weight.copy_(weight.bfloat16())
    model.trained()["model.norm.weight"].data += 1e-4
    kept = Start(model).weights
    assert kept["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert kept["model.norm.weight"].dtype == torch.float32


def kl(model_logits: Tensor, start_logits: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """By the definition, over all words."""
    p = (start_logits[rows] / temperature).softmax(-1)
    q = (model_logits[rows] / temperature).softmax(-1)
    return (p * (p.log() - q.log())).sum() * temperature**2


@pytest.mark.parametrize(("temperature", "everywhere"), [(1.0, False), (2.0, True)])
def test_divergence_is_that_of_the_definition(
    temperature: float, everywhere: bool, tiny_model_dir: Callable[..., Path]
) -> None:
    model = applied(tiny_model_dir(), Full())
    (batch,) = batches(4)
    with torch.no_grad():
        start_logits = model.logits(model.hidden(batch))
    anchor = Anchor("kl", weight=0.7, temperature=temperature, everywhere=everywhere)
    objective = LikeStart(_Plain(), Start(model), [anchor])
    model.train_mode()
    objective.prepare(model, [batch])
    assert float(objective.sums(model, batch).losses["kl"].detach()) == pytest.approx(0.0, abs=1e-5)
    moved(model)
    ours = objective.sums(model, batch).losses
    rows = torch.arange(batch.tokens) if everywhere else batch.trained_R
    wanted = 0.7 * kl(model.logits(model.hidden(batch)), start_logits, rows, temperature)
    torch.testing.assert_close(ours["kl"], wanted, atol=1e-4, rtol=1e-5)
    weights = list(model.trained().values())
    for mine, theirs in zip(
        torch.autograd.grad(ours["kl"], weights), torch.autograd.grad(wanted, weights), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert float(objective.counts(batch)["kl"]) == len(rows)
    torch.testing.assert_close(ours["lm"], _Plain().sums(model, batch).losses["lm"])


def test_penalties_are_those_of_the_papers(tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir(), Lora(rank=2))
    start = Start(model)
    first = {name: weight.detach().clone() for name, weight in model.trained().items()}
    fisher = fisher_information(model, _Plain(), groups())
    squares = {name: torch.zeros_like(weight) for name, weight in first.items()}
    for batch in batches(1, 1, 1, 1):
        loss = -(model.logprobs(batch)[0] * batch.weights_T).sum()
        for name, gradient in zip(squares, torch.autograd.grad(loss, list(model.trained().values())), strict=True):
            squares[name] += gradient**2
    trained = sum(float(batch.weights_T.sum()) for batch in batches(4))
    for name, value in fisher.items():
        torch.testing.assert_close(value, squares[name] / trained, atol=1e-6, rtol=1e-4)
    assert float(l2sp(model, start, 1.0).detach()) == float(ewc(model, start, fisher, 1.0).detach()) == 0.0
    moved(model)
    steps = {name: weight.detach() - first[name] for name, weight in model.trained().items()}
    torch.testing.assert_close(
        l2sp(model, start, 3.0).detach(), torch.stack([1.5 * (step**2).sum() for step in steps.values()]).sum()
    )
    wanted = torch.stack([0.5 * (fisher[name] * step**2).sum() for name, step in steps.items()]).sum()
    torch.testing.assert_close(ewc(model, start, fisher, 1.0).detach(), wanted)


@pytest.mark.parametrize("method", [Full(), Lora(rank=2)])
def test_a_step_does_not_depend_on_how_it_is_cut(method: Method, tiny_model_dir: Callable[..., Path]) -> None:
    found: list[dict[str, Any]] = []
    for cut in ((4,), (1, 3), (1, 1, 1, 1)):
        model = applied(tiny_model_dir(), method)
        start = Start(model)
        moved(model).train_mode()
        inner = LikeStart(_Plain(), start, [Anchor("kl", 0.5)])
        objective = Penalised(inner, {"l2sp": lambda m=model, s=start: l2sp(m, s, 2.0)})
        with open_mesh("cpu") as mesh:
            result = begin(model, objective, batches(*cut), mesh, max_norm=0.0).read()
            model.eval_mode()
            judged = evaluate(model, objective, batches(4), mesh).metrics
            plain = evaluate(model, _Plain(), batches(4), mesh).metrics
        assert set(result.means) == {"lm", "kl", "l2sp", "token_accuracy"}
        assert judged == plain, "evaluation is that of the objective alone"
        found.append(
            {"loss": result.loss, "norm": result.grad_norm, **{k: a / b for k, (a, b) in result.means.items()}}
        )
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
    assert found[0]["loss"] == pytest.approx(sum(found[0][name] for name in ("lm", "kl", "l2sp")), rel=1e-6)


def test_ewc_without_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--general_dataset"):
        Retain(ewc=1.0)
    assert Retain(kl=0.1).on and not Retain(general=("a.jsonl",)).on
    assert Sft().type == "sft"
