"""Invariant 1: however one global batch is cut up, loss and gradient norm are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.data.pack import micro_batches
from luthier.data.render import Renderer
from luthier.engine.mesh import Mesh
from luthier.engine.step import StepResult, begin
from luthier.model import methods
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

METHODS: dict[str, Method] = {"full": Full(), "lora": Lora(rank=4, init="gaussian")}
CPU = Mesh(torch.device("cpu"))


def groups(count: int = 16, seed: int = 0) -> list[Group]:
    """Chats of mixed length; the first half of each is masked and some tokens weigh more than others."""
    rng = np.random.default_rng(seed)
    made: list[Group] = []
    for _ in range(count):
        length = int(rng.integers(4, 60))
        weights = np.where(np.arange(length) < length // 2, 0.0, rng.choice([0.5, 1.0, 2.0], length))
        ids = rng.integers(3, 400, length)
        made.append(Group((Tokens(ids.astype(np.int32), weights.astype(np.float32)),)))
    return made


def build(folder: Path, method: Method, attention: str = "auto") -> Model:
    config = ModelConfig(path=str(folder), attention=attention)  # pyright: ignore[reportArgumentType]
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, method)
    # Adapters start at zero; move them so that every weight has a gradient.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.trained().items():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    model.train_mode()
    return model


def cut(samples: Sequence[Group], bins: Sequence[Sequence[int]]) -> list[Batch]:
    return [collate([samples[index] for index in members], list(members)) for members in bins]


def measure(model: Model, batches: Sequence[Batch]) -> tuple[StepResult, torch.Tensor]:
    for weight in model.trained().values():
        weight.grad = None
    result = begin(model, Language(Sft(), cast(Renderer, None)), batches, CPU, max_norm=0.0).read()
    flat = torch.cat([weight.grad.reshape(-1) for weight in model.trained().values() if weight.grad is not None])
    return result, flat


def same(first: tuple[StepResult, torch.Tensor], second: tuple[StepResult, torch.Tensor]) -> None:
    assert second[0].loss == pytest.approx(first[0].loss, rel=1e-6)
    assert second[0].grad_norm == pytest.approx(first[0].grad_norm, rel=1e-6)
    assert second[0].trained == first[0].trained
    # Not only as long but the same direction; other kernels round differently in every element.
    assert float((first[1] - second[1]).norm() / first[1].norm()) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["qwen2", "llama"])
def test_any_split_and_any_packing_give_one_gradient(tiny_model_dir: Callable[..., Path], shape: str, method: str):
    model, samples = build(tiny_model_dir(shape), METHODS[method]), groups()
    whole = measure(model, cut(samples, [range(16)]))
    assert whole[0].loss > 0 and whole[0].grad_norm > 0
    same(whole, measure(model, cut(samples, [[index] for index in range(16)])))  # 16 x 1
    same(whole, measure(model, cut(samples, [range(8), range(8, 16)])))  # 2 x 8
    lengths = [len(group) for group in samples]
    for capacity in (64, 100, 400):  # packed
        same(whole, measure(model, cut(samples, micro_batches(lengths, capacity, 1))))
    same(whole, measure(model, cut(samples, [*[range(16)][::-1], []])))  # with an empty micro-batch


@pytest.mark.parametrize("method", METHODS)
def test_padded_models_give_the_packed_gradient(tiny_model_dir: Callable[..., Path], method: str):
    folder, samples = tiny_model_dir("qwen2"), groups()
    packed = measure(build(folder, METHODS[method], "packed"), cut(samples, [range(16)]))
    for attention in ("sdpa", "eager"):
        same(packed, measure(build(folder, METHODS[method], attention), cut(samples, [range(8), range(8, 16)])))


def test_the_loss_is_the_weighted_mean_of_transformers_own(tiny_model_dir: Callable[..., Path]):
    model, samples = build(tiny_model_dir("qwen2"), Full()), groups(4)
    ours = measure(model, cut(samples, [[0, 1], [2, 3]]))[0].loss
    total, count = 0.0, 0.0
    for group in samples:
        tokens = group.sequences[0]
        logits = model.base(input_ids=torch.from_numpy(tokens.ids.astype(np.int64))[None]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.detach(), torch.from_numpy(tokens.ids[1:].astype(np.int64)), reduction="none"
        )
        weights = torch.from_numpy(tokens.weights[1:])
        total, count = total + float((losses * weights).sum()), count + float(weights.sum())
    assert ours == pytest.approx(total / count, rel=1e-6)


def test_a_step_without_trained_tokens_is_zero_and_not_nan(tiny_model_dir: Callable[..., Path]):
    model = build(tiny_model_dir("qwen2"), Full())
    masked = [Group((Tokens(g.sequences[0].ids, np.zeros_like(g.sequences[0].weights)),)) for g in groups(3)]
    result, flat = measure(model, cut(masked, [range(3)]))
    assert (result.loss, result.grad_norm, result.trained) == (0.0, 0.0, 0.0)
    assert not flat.any() and torch.isfinite(flat).all()
    mixed = [*masked, *groups(3)]
    same(measure(model, cut(groups(3), [range(3)])), measure(model, cut(mixed, [range(3), range(3, 6)])))
