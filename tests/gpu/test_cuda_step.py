"""The step on a CUDA device: fast paths against plain ones, outputs and gradients, and no waiting for the device.

pytest -m gpu -n 0 -s tests/gpu
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from waiting import waits

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.data.pack import micro_batches
from luthier.data.render import Renderer
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh
from luthier.engine.optim import Optimizer
from luthier.engine.step import StepResult, begin
from luthier.model import logprobs, methods
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)
METHODS: dict[str, Method] = {"full": Full(), "lora": Lora(rank=4, alpha=4, init="gaussian")}
WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "initializer_range": 0.05}
SHAPES = ["qwen2", "mistral", "gemma3"]
Gradients = dict[str, Tensor]


def build(folder: Path, *, dtype: str, attention: str = "auto", method: str = "full") -> Model:
    config = ModelConfig.model_validate({"path": str(folder), "dtype": dtype, "attention": attention})
    model = load_model(config, DEVICE, tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, METHODS[method])
    # Adapters start at zero; move them so that every weight has a gradient.
    with torch.no_grad():
        for name, weight in model.trained().items():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    model.train_mode()
    return model


def groups(count: int = 24, longest: int = 120) -> list[Group]:
    """Sequences of mixed length; the first half of each is masked and some tokens weigh more than others."""
    rng = np.random.default_rng(0)
    made: list[Group] = []
    for _ in range(count):
        length = int(rng.integers(4, longest))
        weights = np.where(np.arange(length) < length // 2, 0.0, rng.choice([0.5, 1.0, 2.0], length))
        made.append(Group((Tokens(rng.integers(3, 390, length).astype(np.int32), weights.astype(np.float32)),)))
    return made


def cut(samples: Sequence[Group], bins: Sequence[Sequence[int]]) -> list[Batch]:
    return [collate([samples[index] for index in members], list(members)) for members in bins]


def step(model: Model, batches: Sequence[Batch]) -> tuple[StepResult, Gradients]:
    """Numbers and gradients of one optimizer step."""
    for weight in model.trained().values():
        weight.grad = None
    objective = Language(Sft(), cast(Renderer, None))
    result = begin(model, objective, [batch.to(DEVICE) for batch in batches], Mesh(DEVICE), max_norm=0.0).read()
    return result, {name: w.grad.clone() for name, w in model.trained().items() if w.grad is not None}


def flat(found: Gradients) -> Tensor:
    return torch.cat([gradient.float().flatten() for gradient in found.values()])


def apart(first: Tensor, second: Tensor) -> float:
    """Relative distance."""
    return float((first.float() - second.float()).norm() / second.float().norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_equals_padded_in_float32(shape: str, tiny_model_dir: Callable[..., Path]) -> None:
    folder, batch = tiny_model_dir(shape, **WIDE), cut(groups(), [range(24)])
    plain = step(build(folder, dtype="float32", attention="eager"), batch)
    for attention in ("packed", "sdpa"):
        fast = step(build(folder, dtype="float32", attention=attention), batch)
        assert fast[0].loss == pytest.approx(plain[0].loss, rel=1e-5)
        assert apart(flat(fast[1]), flat(plain[1])) < 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_as_near_the_truth_as_sdpa_in_bfloat16(
    shape: str, method: str, tiny_model_dir: Callable[..., Path]
) -> None:
    folder, batch = tiny_model_dir(shape, **WIDE), cut(groups(), [range(24)])
    exact = step(build(folder, dtype="float32", attention="eager", method=method), batch)
    packed, padded = (
        step(build(folder, dtype="bfloat16", attention=attention, method=method), batch)
        for attention in ("packed", "sdpa")
    )
    near, reference = apart(flat(packed[1]), flat(exact[1])), apart(flat(padded[1]), flat(exact[1]))
    print(f"{shape} {method}: gradient error in bfloat16, packed {near:.4f}, sdpa {reference:.4f}")
    assert packed[0].loss == pytest.approx(exact[0].loss, rel=2e-3)
    assert near < 1.5 * reference + 1e-3
    assert near < 0.2  # Gemma 3 scales its embeddings up, which costs bits with either kernel


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["qwen2", "qwen2-untied", "granite"])
def test_chunked_logprobs_equal_whole_ones(
    shape: str, dtype: str, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build(tiny_model_dir(shape, **WIDE), dtype=dtype), cut(groups(), [range(24)])
    whole = step(model, batch)
    monkeypatch.setitem(logprobs._CHUNK_ELEMENTS, "cuda", model.vocabulary * 17)
    chunked = step(model, batch)
    assert chunked[0].loss == pytest.approx(whole[0].loss, rel=1e-6 if dtype == "float32" else 1e-3)
    assert apart(flat(chunked[1]), flat(whole[1])) < (1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "loss", "gradient"), [("float32", 1e-6, 1e-5), ("bfloat16", 1e-3, 2e-2)])
def test_any_split_gives_one_gradient(
    dtype: str, loss: float, gradient: float, method: str, tiny_model_dir: Callable[..., Path]
) -> None:
    model, samples = build(tiny_model_dir("qwen2", **WIDE), dtype=dtype, method=method), groups()
    whole = step(model, cut(samples, [range(24)]))
    lengths = [len(group) for group in samples]
    for bins in ([[i] for i in range(24)], micro_batches(lengths, 200, 1), [[], list(range(24))]):
        split = step(model, cut(samples, bins))
        assert split[0].loss == pytest.approx(whole[0].loss, rel=loss)
        assert split[0].trained == whole[0].trained
        assert apart(flat(split[1]), flat(whole[1])) < gradient


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_trained_weight_gets_a_gradient(
    method: str, dtype: str, checkpointing: bool, tiny_model_dir: Callable[..., Path]
) -> None:
    model, batches = build(tiny_model_dir("qwen2", **WIDE), dtype=dtype, method=method), cut(groups(), [range(24)])
    plain = step(model, batches)
    model.train_mode("input" if checkpointing else "most")
    result, found = step(model, batches)
    assert found.keys() == model.trained().keys()
    assert all(gradient.any() and gradient.isfinite().all() for gradient in found.values())
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert result.loss == pytest.approx(plain[0].loss, rel=1e-6)
    assert apart(flat(found), flat(plain[1])) < (1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_only_for_its_numbers(
    method: str, checkpointing: bool, tiny_model_dir: Callable[..., Path]
) -> None:
    model, samples = build(tiny_model_dir("qwen2", **WIDE), dtype="bfloat16", method=method), groups()
    model.train_mode("input" if checkpointing else "most")
    optimizer = Optimizer(model.trained(), OptimConfig(learning_rate=1e-3), lambda _: 1.0)
    batches = cut(samples, micro_batches([len(group) for group in samples], 400, 1))
    assert len(batches) > 2

    def one() -> None:
        torch.manual_seed(1)
        optimizer.zero_grad()
        objective, here = Language(Sft(), cast(Renderer, None)), [batch.to(DEVICE) for batch in batches]
        pending = begin(model, objective, here, Mesh(DEVICE), max_norm=1.0)
        optimizer.step(1.0, unless=pending.unsound)
        assert pending.read().trained > 0  # waits for an event, which torch does not report

    one()  # the first step makes the optimizer's state
    torch.cuda.synchronize()
    places = waits(one)
    assert not places, "\n".join(places)
