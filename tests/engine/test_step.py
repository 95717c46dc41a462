"""What a step leaves in the gradients, and what it holds on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoders import save_encoder

from luthier.base.records import Labelled, Where
from luthier.data.batch import Batch, collate
from luthier.data.plain import Plain
from luthier.engine.mesh import Mesh
from luthier.engine.step import begin
from luthier.model import methods
from luthier.model.config import Full, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.classify import Classification
from luthier.objectives.config import SeqCls
from luthier.run.forecast.footprint import weights_of
from luthier.run.forecast.ledger import Ledger

CPU = Mesh(torch.device("cpu"))


@pytest.fixture
def learned(tmp_path: Path) -> tuple[Model, Classification, Batch]:
    """A BERT that learns two classes, and a micro-batch."""
    config = ModelConfig(path=str(save_encoder(tmp_path, "bert")))
    tokenizer = load_tokenizer(config)
    plain, problem = Plain(tokenizer, 128, "truncate"), "single_label_classification"
    objective = Classification(SeqCls(), ("a", "b"), problem, None, plain, None)
    model = load_model(config, CPU.device, tokenizer=tokenizer, trained=True, head=objective.head)
    methods.apply(model, Full())
    model.train_mode()
    rows = [objective.encode(Labelled("the violin", label, Where("test", 1))) for label in "ab"]
    return model, objective, collate([row for row in rows if row is not None], range(2))


def test_what_no_sample_leads_to_has_a_gradient_of_zero(learned: tuple[Model, Classification, Batch]) -> None:
    model, objective, batch = learned
    assert begin(model, objective, [batch], CPU, max_norm=0.0).read().grad_norm > 0
    assert all(weight.grad is not None for weight in model.trained().values())
    for weight in model.trained().values():
        weight.grad = None
    begin(model, objective, [collate([], [])], CPU, max_norm=0.0)
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.trained().values())


def test_gradients_that_are_there_are_added_to_one_by_one(learned: tuple[Model, Classification, Batch]) -> None:
    model, objective, batch = learned
    begin(model, objective, [batch], CPU, max_norm=0.0)
    gradients = [weight.grad for weight in model.trained().values() if weight.grad is not None]
    with Ledger() as ledger:
        ledger.enter(weights_of(model), "weights")
        ledger.enter(gradients, "gradients")
        ledger.begin()
        (loss,) = objective.sums(model, batch).losses.values()
        kept = ledger.now.others
        loss.backward()
    assert ledger.peak.others < kept + 0.5 * sum(gradient.nbytes for gradient in gradients)
