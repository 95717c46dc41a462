"""Invariant 1 for tasks on encoders: however one global batch is cut up or padded, loss and gradient are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoders import save_encoder

from luthier.base.records import Labelled, Record, Tagged, Where
from luthier.data.batch import Group, collate
from luthier.data.plain import Plain
from luthier.engine.mesh import Mesh
from luthier.engine.step import begin
from luthier.model import methods
from luthier.model.config import Full, ModelConfig
from luthier.model.load import load_model, load_tokenizer
from luthier.objectives.classify import Classification, Problem
from luthier.objectives.config import SeqCls, TokenCls
from luthier.objectives.tag import Tagging

CPU = Mesh(torch.device("cpu"))
HERE = Where("test", 1)
TASKS: dict[str, Problem | None] = {
    "one": "single_label_classification",
    "several": "multi_label_classification",
    "number": "regression",
    "tags": None,
}
CUTS = ([[0, 1, 2, 3, 4, 5]], [[0], [1], [2], [3], [4], [5]], [[5, 1], [3, 0, 2], [4], []])


def record(number: int, task: str) -> Record:
    words = ("violin", "maker", "planes", "the", "top", "name")[: 1 + number]
    weight = 1.0 + number % 3
    if task == "tags":
        return Tagged(words, tuple("ab"[n % 2] for n in range(len(words))), HERE, weight)
    labels = {"one": "ab"[number % 2], "several": ("a", "b")[: number % 3], "number": number / 3}
    return Labelled(" ".join(words), labels[task], HERE, weight=weight)


@pytest.mark.parametrize("task", TASKS)
def test_any_cut_gives_one_gradient(task: str, tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    found: list[tuple[float, float, torch.Tensor]] = []
    for attention in ("auto", "eager"):
        config = ModelConfig.model_validate({"path": str(folder), "attention": attention})
        tokenizer = load_tokenizer(config)
        plain, problem = Plain(tokenizer, 128, "truncate"), TASKS[task]
        weights = torch.tensor([1.0, 3.0]) if task in ("one", "several") else None
        objective = (
            Tagging(TokenCls(), ("a", "b"), plain)
            if problem is None
            else Classification(
                SeqCls(), ("a", "b") if weights is not None else ("value",), problem, weights, plain, None
            )
        )
        torch.manual_seed(0)
        model = load_model(config, CPU.device, tokenizer=tokenizer, trained=True, head=objective.head)
        assert model.packed == (attention == "auto")
        methods.apply(model, Full())
        model.train_mode()
        model.eval_mode()
        groups = [objective.encode(record(number, task)) for number in range(6)]
        for cut in CUTS:
            model.network.zero_grad()
            batches = [collate([g for i in members if (g := groups[i])], members) for members in cut]
            result = begin(model, objective, batches, CPU, max_norm=0.0).read()
            flat = [weight.grad.reshape(-1) for weight in model.trained().values() if weight.grad is not None]
            found.append((result.loss, result.grad_norm, torch.cat(flat)))
    assert all(isinstance(group, Group) for group in groups)
    for loss, norm, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert norm == pytest.approx(found[0][1], rel=1e-5)
        if len(gradient) == len(found[0][2]):
            assert float((gradient - found[0][2]).norm() / found[0][2].norm()) < 1e-5
