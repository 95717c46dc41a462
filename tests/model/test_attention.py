"""Packed attention against its plain twins: outputs and gradients, for every shape that can run packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from luthier.base.errors import ModelError
from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.data.render import Renderer
from luthier.engine.mesh import Mesh
from luthier.engine.step import begin
from luthier.model import attention
from luthier.model.attention import Packing, packed_attention
from luthier.model.config import Full, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.methods import apply
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

LENGTHS = (9, 3, 9, 1, 14)
PACKED = ("qwen2", "qwen3", "llama", "mistral", "phi3", "gemma3", "granite", "cohere", "gpt2")
PADDED = ("gemma2", "mamba")


def batch_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    groups = [
        Group((Tokens(rng.integers(3, 390, n).astype(np.int32), np.array([0] + [1] * (n - 1), np.float32)),))
        for n in lengths
    ]
    return collate(groups, range(len(groups)))


def model_of(folder: Path, attention: str) -> Model:
    config = ModelConfig.model_validate({"path": str(folder), "attention": attention})
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    apply(model, Full())
    return model


def run(model: Model, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states of all batches in order, and the gradient of a number that depends on every one of them."""
    model.network.zero_grad()
    hidden_TD = torch.cat([model.hidden(batch) for batch in batches])
    (hidden_TD * torch.linspace(0.1, 1, hidden_TD.shape[1])).square().sum().backward()
    return hidden_TD.detach(), {name: w.grad.clone() for name, w in model.trained().items() if w.grad is not None}


def one_by_one(batch: Batch) -> list[Batch]:
    pieces = []
    for start, end in zip(batch.offsets, batch.offsets[1:], strict=False):
        tokens = Tokens(batch.ids_T[start:end].numpy().astype(np.int32), np.zeros(end - start, np.float32))
        pieces.append(collate([Group((tokens,))], [0]))
    return pieces


def assert_same(left: tuple[Tensor, dict[str, Tensor]], right: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(left[0], right[0], rtol=1e-4, atol=1e-4)
    assert left[1].keys() == right[1].keys()
    for name, gradient in left[1].items():
        difference = (gradient - right[1][name]).norm() / right[1][name].norm().clamp(min=1e-6)
        assert difference < 1e-4, name


@pytest.mark.parametrize("shape", [*PACKED, *PADDED])
def test_packed_equals_padded_equals_one_at_a_time(shape: str, tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir(shape)
    batch = batch_of()
    model = model_of(folder, "auto")
    assert model.packed == (shape in PACKED)
    assert (model.note is None) == model.packed
    packed = run(model, [batch])
    alone = run(model_of(folder, "eager"), one_by_one(batch))
    assert_same(packed, alone)
    if shape != "gemma2":
        assert_same(run(model_of(folder, "sdpa"), [batch]), alone)


@pytest.mark.parametrize("shape", ["qwen2", "mistral"])
def test_recomputed_layers_have_the_same_gradients(shape: str, tiny_model_dir: Callable[..., Path]) -> None:
    model = model_of(tiny_model_dir(shape), "packed")
    plain = run(model, [batch_of()])
    model.train_mode(keep="input")
    assert_same(run(model, [batch_of()]), plain)
    model.train_mode()
    assert_same(run(model, [batch_of()]), plain)


def test_a_sequence_does_not_see_its_neighbours(tiny_model_dir: Callable[..., Path]) -> None:
    model = model_of(tiny_model_dir("qwen2"), "packed")
    first, second = batch_of(), batch_of(seed=1)
    last = LENGTHS[-1]
    mixed = collate(
        [
            Group((Tokens(ids[start:end].numpy().astype(np.int32), np.zeros(end - start, np.float32)),))
            for ids, start, end in [
                *((second.ids_T, s, e) for s, e in zip(first.offsets[:-2], first.offsets[1:-1], strict=True)),
                (first.ids_T, first.offsets[-2], first.offsets[-1]),
            ]
        ],
        range(len(LENGTHS)),
    )
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(first)[-last:], model.hidden(mixed)[-last:], rtol=0, atol=1e-6)
        assert (model.hidden(first)[:-last] - model.hidden(mixed)[:-last]).abs().max() > 0.1


@pytest.mark.parametrize("shape", PACKED)
def test_packed_forward_does_not_look_for_sequences(
    shape: str, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model_dir(shape), "packed")
    expected = model.hidden(batch_of())

    def never(*_: object, **__: object) -> None:
        raise AssertionError("positions are looked at, which waits for a GPU")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", never)
    torch.testing.assert_close(model.hidden(batch_of()), expected, rtol=0, atol=0)


def test_empty_batch_has_a_graph_and_zero_gradients(tiny_model_dir: Callable[..., Path]) -> None:
    for shape in ("qwen2", "gemma2"):
        model = model_of(tiny_model_dir(shape), "auto")
        empty = collate([], [])
        hidden_TD = model.hidden(empty)
        assert hidden_TD.shape == (0, 32)
        logprobs_T, correct_T = model.logprobs(empty)
        assert logprobs_T.shape == correct_T.shape == (0,)
        (logprobs_T.sum() + model.anchor()).backward()
        begin(model, Language(Sft(), cast(Renderer, None)), [empty], Mesh(torch.device("cpu")), max_norm=0.0)
        assert all(w.grad is not None and not w.grad.any() for w in model.trained().values())


def test_models_that_cannot_run_packed_say_so(tiny_model_dir: Callable[..., Path]) -> None:
    assert "caps attention scores" in str(model_of(tiny_model_dir("gemma2"), "auto").note)
    with pytest.raises(ModelError, match="cannot run packed"):
        model_of(tiny_model_dir("mamba"), "packed")
    with pytest.raises(ModelError, match="SDPA cannot compute"):
        model_of(tiny_model_dir("gemma2"), "sdpa")


def test_what_is_not_computed_is_refused() -> None:
    heads = torch.zeros(1, 2, 4, 8)
    packing = Packing.of((4,), (0, 4), torch.device("cpu"))
    with pytest.raises(NotImplementedError, match="s_aux"):
        packed_attention(torch.nn.Identity(), heads, heads, heads, None, packing=packing, s_aux=torch.zeros(2))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("limit", [2**31, 20_000])
def test_kernel_equals_plain_on_cuda(window: int | None, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_KERNEL_LIMIT", limit)
    torch.manual_seed(0)
    device = torch.device("cuda")
    lengths = (40, 7, 64, 1)
    total = sum(lengths)
    offsets = tuple(np.concatenate(([0], np.cumsum(lengths))).tolist())
    packing = Packing.of(lengths, offsets, device)
    parts = [torch.randn(1, heads, total, 32, device=device, dtype=torch.bfloat16) for heads in (8, 2, 2)]
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [part.to(dtype).detach().requires_grad_() for part in parts]
        output, _ = packed_attention(torch.nn.Identity(), *leaves, None, sliding_window=window, packing=packing)
        output.float().square().sum().backward()
        results.append([output.detach().float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)])
    for kernel, plain in zip(*results, strict=True):
        assert (kernel - plain).norm() / plain.norm() < 2e-2
