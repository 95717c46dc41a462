"""The fast step against the plain one: gradients in float32 and bfloat16, and the loss curve of 300 steps.

The plain path is transformers' own layers (with PEFT's adapters) under autograd.  In bfloat16 neither path is exact;
the fast one must be as near to float32 as the plain one is.

pytest -m gpu -n 0 -s tests/gpu
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.data.render import Renderer
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh
from luthier.engine.optim import Optimizer
from luthier.engine.step import begin
from luthier.model import methods
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.layer import Keep
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.pointwise import Plain
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)
METHODS: dict[str, Method] = {"full": Full(), "lora": Lora(rank=16, alpha=32)}
WIDE = {
    "hidden_size": 512,
    "head_dim": 64,
    "num_attention_heads": 8,
    "intermediate_size": 1408,
    "initializer_range": 0.05,
    "max_position_embeddings": 2048,
}
KEEPS: tuple[Keep, ...] = ("all", "most", "some", "input")


def build(folder: Path, method: str, *, dtype: str, by_hand: bool, keep: Keep = "most", fused: bool = True) -> Model:
    from luthier.model.kernels import Fused

    config = ModelConfig.model_validate({"path": str(folder), "dtype": dtype})
    model = load_model(config, DEVICE, tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, METHODS[method])
    with torch.no_grad():
        for name, weight in model.trained().items():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    if by_hand:
        assert model.by_hand(Fused() if fused else Plain()) is None
    model.train_mode(keep)
    return model


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    groups = [
        Group((Tokens(rng.integers(3, 390, n).astype(np.int32), (rng.random(n) < 0.7).astype(np.float32)),))
        for n in lengths
    ]
    return collate(groups, range(len(groups))).to(DEVICE)


MIXED, EVEN = (500, 3, 257, 1, 700, 64), (512,) * 3


def step(model: Model, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    for weight in model.trained().values():
        weight.grad = None
    result = begin(model, Language(Sft(), Renderer(model.tokenizer)), [batch], Mesh(DEVICE), max_norm=0).read()
    return result.loss, {name: w.grad.double() for name, w in model.trained().items() if w.grad is not None}


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Norm of the difference of two whole gradients over the norm of the second."""
    difference = sum(float((left[name] - right[name]).square().sum()) for name in right) ** 0.5
    return difference / sum(float(value.square().sum()) for value in right.values()) ** 0.5


@pytest.mark.parametrize("lengths", [MIXED, EVEN], ids=["mixed", "even"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["qwen2", "qwen3", "llama", "mistral"])
def test_gradients_equal_the_plain_paths(
    tiny_model_dir: Callable[..., Path], shape: str, method: str, lengths: tuple[int, ...]
) -> None:
    folder, batch = tiny_model_dir(shape, **WIDE), batch_of(lengths)
    exact_loss, exact = step(build(folder, method, dtype="float32", by_hand=False), batch)
    for keep in KEEPS:
        loss, got = step(build(folder, method, dtype="float32", by_hand=True, keep=keep), batch)
        assert loss == pytest.approx(exact_loss, rel=1e-5)
        assert got.keys() == exact.keys() and distance(got, exact) < 1e-4
        # Everything has a gradient that the plain path gives one.
        for name, value in exact.items():
            assert bool(got[name].any()) == bool(value.any()), name
    plain_loss, plain = step(build(folder, method, dtype="bfloat16", by_hand=False), batch)
    noise = distance(plain, exact)
    for keep in KEEPS:
        for fused in (True, False):
            model = build(folder, method, dtype="bfloat16", by_hand=True, keep=keep, fused=fused)
            loss, got = step(model, batch)
            error = distance(got, exact)
            print(
                f"{shape} {method} {keep} {'kernels' if fused else 'plain functions'}: relative error "
                f"{error:.4f}, transformers' own {noise:.4f}; loss {loss:.5f}, {plain_loss:.5f}, {exact_loss:.5f}"
            )
            assert error < 1.25 * noise + 1e-3
            for name in exact:
                assert got[name].any(), name


def chains(count: int, seed: int) -> Batch:
    """Sequences in which every token has three likely successors: something to learn, and too much to memorise."""
    rng = np.random.default_rng(seed)
    successors = np.random.default_rng(0).integers(3, 390, (390, 3))
    groups: list[Group] = []
    for _ in range(count):
        ids = [int(rng.integers(3, 390))]
        while len(ids) < 128:
            ids.append(int(successors[ids[-1], rng.choice(3, p=[0.6, 0.3, 0.1])]))
        groups.append(Group((Tokens(np.array(ids, np.int32), np.ones(128, np.float32)),)))
    return collate(groups, range(count)).to(DEVICE)


@pytest.mark.parametrize("method", METHODS)
def test_three_hundred_steps_lie_on_the_plain_curve(tiny_model_dir: Callable[..., Path], method: str) -> None:
    folder = tiny_model_dir("qwen2", **WIDE)
    batches = [chains(16, seed) for seed in range(300)]
    curves: list[list[float]] = []
    for by_hand in (False, True):
        model = build(folder, method, dtype="bfloat16", by_hand=by_hand)
        objective = Language(Sft(), Renderer(model.tokenizer))
        optimizer = Optimizer(model.trained(), OptimConfig(learning_rate=1e-3), lambda _: 1.0)
        losses: list[float] = []
        for batch in batches:
            optimizer.zero_grad()
            losses.append(begin(model, objective, [batch], Mesh(DEVICE), max_norm=1.0).read().loss)
            optimizer.step(1.0)
        curves.append(losses)
    plain, fast = np.array(curves[0]), np.array(curves[1])
    apart = np.abs(fast / plain - 1)
    print(
        f"{method}: plain {plain[0]:.4f} -> {plain[-10:].mean():.4f}, fast {fast[0]:.4f} -> {fast[-10:].mean():.4f}; "
        f"apart at most {apart.max():.4f}, on average {apart.mean():.4f}"
    )
    assert plain[-10:].mean() < plain[:10].mean() - 0.5, "nothing was learned, so nothing was compared"
    assert apart.max() < 0.02 and apart.mean() < 0.005
