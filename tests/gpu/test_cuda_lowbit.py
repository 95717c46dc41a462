"""Bases in few bits and 8-bit optimizers on a CUDA device: gradients, learning, memory.

pytest -m gpu -n 0 -s tests/gpu/test_cuda_lowbit.py

Paged optimizers take managed memory, which can hang a GPU that others share: they are tested only when asked for with
LUTHIER_TEST_MANAGED_MEMORY=1.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rounded import LORAS, adapted, apart, ways
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from waiting import waits

from luthier.base.errors import ModelError
from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.data.render import Renderer
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh
from luthier.engine.optim import Optimizer
from luthier.engine.step import StepResult, begin
from luthier.model import lowbit, rounding
from luthier.model.config import Full, Lora, Method, ModelConfig, Quant
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)
MIB = 2**20
# About 105M weights in the layers.
BIG = {
    "hidden_size": 768,
    "head_dim": 64,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "initializer_range": 0.03,
    "max_position_embeddings": 2048,
}
SMALLER = {**BIG, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1408, "num_hidden_layers": 3}
PAGED = pytest.mark.skipif(not os.environ.get("LUTHIER_TEST_MANAGED_MEMORY"), reason="takes managed memory")


def load(folder: Path, quant: Quant, dtype: str = "bfloat16") -> Model:
    config = ModelConfig.model_validate({"path": str(folder), "dtype": dtype, "quant": quant})
    return load_model(config, DEVICE, tokenizer=load_tokenizer(config), trained=True)


def twin(folder: Path, quant: Quant, dtype: str) -> Model:
    """The same rounded numbers in plain layers."""
    model = load(folder, quant, dtype)
    lowbit.write_out(model.base, model.dtype)
    return model


def batch(count: int, longest: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    made: list[Group] = []
    for _ in range(count):
        length = int(rng.integers(longest // 2, longest))
        weights = (np.arange(length) > 0).astype(np.float32)
        made.append(Group((Tokens(rng.integers(3, 390, length).astype(np.int32), weights),)))
    return collate(made, range(count)).to(DEVICE)


def step(model: Model, batches: list[Batch]) -> tuple[StepResult, Tensor]:
    """Numbers of one optimizer step, and its gradient as one vector."""
    for weight in model.trained().values():
        weight.grad = None
    result = begin(model, Language(Sft(), cast(Renderer, None)), batches, Mesh(DEVICE), max_norm=0.0).read()
    return result, torch.cat([w.grad.float().flatten() for w in model.trained().values() if w.grad is not None])


@pytest.mark.parametrize("quant", ways())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_plain_lora_over_the_rounded_weights(
    quant: Quant, dtype: str, tiny_model_dir: Callable[..., Path]
) -> None:
    """In bfloat16: no farther from float32 than the plain layers are, by more than a tenth."""
    folder = tiny_model_dir("qwen2-untied", **SMALLER)
    few, many = [batch(2, 12)], [batch(24, 200)]  # few rows take bitsandbytes' own kernel for the product
    for name in ("lora", "dora", "pissa"):
        model, plain, truth = (
            adapted(load(folder, quant, dtype), LORAS[name]),
            adapted(twin(folder, quant, dtype), LORAS[name]),
            adapted(twin(folder, quant, "float32"), LORAS[name]),
        )
        truth.train_mode()
        for batches in (few, many):
            for keep in ("all", "most", "input"):
                model.train_mode(cast(Any, keep))
                plain.train_mode()
                (found, gradient), (expected, usual), (_, exact) = (step(m, batches) for m in (model, plain, truth))
                tolerance = 1e-4 if dtype == "float32" else 1.1 * apart(usual, exact)
                assert found.loss == pytest.approx(expected.loss, rel=1e-5 if dtype == "float32" else 2e-3)
                assert gradient.numel() == exact.numel() and exact.any()
                assert apart(gradient, exact) < tolerance, (name, keep)


@pytest.mark.parametrize("quant", ways())
def test_layers_by_hand_give_the_same_gradients(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    from luthier.model.kernels import Fused

    folder, method = tiny_model_dir("qwen2-untied", **SMALLER), LORAS["lora"]
    model, plain = adapted(load(folder, quant), method), adapted(twin(folder, quant, "bfloat16"), method)
    assert model.by_hand(Fused()) is None
    plain.train_mode()
    for keep in ("all", "most", "some", "input"):
        model.train_mode(cast(Any, keep))
        for batches in ([batch(2, 12)], [batch(24, 200), batch(3, 90)]):
            (found, gradient), (expected, exact) = step(model, batches), step(plain, batches)
            print(f"{quant.method} {quant.bits} {keep}: gradients {apart(gradient, exact):.4f} apart")
            assert found.loss == pytest.approx(expected.loss, rel=3e-3)
            assert apart(gradient, exact) < 3e-2


@pytest.mark.parametrize("quant", ways())
def test_it_learns_in_less_memory(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir("qwen2-untied", **BIG)
    peaks: list[float] = []
    for held in (Quant(), quant):
        free()
        torch.cuda.reset_peak_memory_stats()
        model = load(folder, held)
        loading, weights = torch.cuda.max_memory_allocated() / MIB, torch.cuda.memory_allocated() / MIB
        adapted(model, Lora(rank=16))
        model.train_mode("input")
        optimizer = Optimizer(model.trained(), OptimConfig(learning_rate=1e-3), lambda _: 1.0)
        torch.cuda.reset_peak_memory_stats()
        losses: list[float] = []
        for _ in range(30):
            result, _ = step(model, [batch(16, 256)])
            optimizer.step(1.0)
            losses.append(result.loss)
        peaks.append(torch.cuda.max_memory_allocated() / MIB)
        memory = f"loading {loading:.0f} MiB, loaded {weights:.0f}, training {peaks[-1]:.0f}"
        way = f"{held.method} {held.bits} {held.format}" if held.on else "bfloat16"
        print(f"{way}: {memory}; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
        assert losses[-1] < losses[0] - 0.3
        if held.on:
            bits = 8 * sum(tensor.nbytes for _, tensor in lowbit.tensors(model.network)) / (105 * MIB)
            assert bits < (quant.bits or 4) + (2.2 if quant.group_size < 64 else 1.0)
        del model, optimizer
    saved = 105 * (16 - (quant.bits or 4) - 2.2) / 8
    assert peaks[1] < peaks[0] - 0.8 * saved


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("quant", ways("nf4", "fp4"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_for_four_bits_agree_with_the_format(quant: Quant, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    four: Any = rounding.rounding(quant, DEVICE)
    for rows, columns in ((64, 128), (48, 96), (100, 36), (896, 4864), (5, 7)):
        weight = torch.randn(rows, columns, device=DEVICE, dtype=dtype)
        held = four.pack(weight)
        exact = four.decoded(held, rows, columns)
        assert apart(four.dense(held, rows, columns, dtype), exact) < (1e-5 if dtype == torch.float32 else 4e-3)
        if columns % 64:
            continue  # found out at loading, and then not used
        for count in (1, 7, 300, 2000):
            x = torch.randn(count, columns, device=DEVICE, dtype=dtype)
            product = four.product(held, rows, x, None)
            expected = nn.functional.linear(x.double(), exact.double())
            assert apart(product, expected) < (1e-4 if dtype == torch.float32 else 1e-2), (rows, columns, count)


@pytest.mark.parametrize("quant", ways())
def test_which_kernels_are_used(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    model = load(tiny_model_dir("qwen2-untied", **SMALLER), quant)
    used = {layer.fused for layer in model.base.modules() if isinstance(layer, lowbit.LowBitLinear)}
    print(f"{quant.method} {quant.bits}: own kernel for products usable {used}")
    assert used == {True}


@pytest.mark.parametrize("quant", ways("nf4", "int8", "hqq4"))
def test_one_token_at_a_time_answers_as_all_at_once(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    model = load(tiny_model_dir("qwen2-untied", **SMALLER), quant)
    ids = torch.arange(5, 29, device=DEVICE)[None]
    network: Any = model.base
    with torch.no_grad(), model.arithmetic():
        whole = network(ids).logits[0, -1]
        cache = None
        for position in range(ids.shape[1]):
            output = network(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
    assert apart(output.logits[0, -1], whole) < 3e-2


def test_eetq_names_what_is_missing() -> None:
    try:
        rounding.rounding(Quant(method="eetq"), DEVICE)
    except ModelError as error:
        assert error.code == "missing_extra" and "--quant_method hqq --quant_bits 8" in str(error)
    else:
        pytest.skip("EETQ's kernels are here")


@pytest.mark.parametrize("quant", ways())
def test_a_step_waits_only_for_its_numbers(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    model = adapted(load(tiny_model_dir("qwen2", **SMALLER), quant), Lora(rank=8))
    model.train_mode()
    batches = [batch(4, 64, seed) for seed in range(3)]
    step(model, batches)
    torch.cuda.synchronize()
    places = waits(
        lambda: begin(model, Language(Sft(), cast(Renderer, None)), batches, Mesh(DEVICE), max_norm=1.0).read()
    )
    assert not places, "\n".join(places)


OPTIMIZERS = ["adamw", "adamw_8bit", "lion_8bit", pytest.param("paged_adamw_8bit", marks=PAGED)]
OPTIMIZERS += [pytest.param("paged_adamw", marks=PAGED)]


def config(name: str) -> OptimConfig:
    return OptimConfig.model_validate({"name": name, "learning_rate": 3e-4 if "lion" not in name else 1e-4})


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", [Full(), Lora(rank=16)], ids=["full", "lora"])
def test_optimizers_with_small_state_learn(name: str, method: Method, tiny_model_dir: Callable[..., Path]) -> None:
    pytest.importorskip("bitsandbytes")
    free()
    model = adapted(load(tiny_model_dir("qwen2", **SMALLER), Quant()), method)
    model.train_mode("input")
    optimizer = Optimizer(model.trained(), config(name), lambda _: 1.0)
    step(model, [batch(16, 256)])  # cuBLAS takes memory at the first product
    optimizer.zero_grad()
    before = torch.cuda.memory_allocated()
    losses: list[float] = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(step(model, [batch(16, 256)])[0].loss)
        optimizer.step(1.0)
    optimizer.zero_grad()
    state = (torch.cuda.memory_allocated() - before) / sum(weight.numel() for weight in model.trained().values())
    print(f"{name} {method.type}: {state:.2f} bytes of state a weight on the GPU, {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert losses[-1] < losses[0] - (0.3 if isinstance(method, Full) else 0.02)
    if isinstance(method, Full):
        assert state < {"adamw": 8.3, "adamw_8bit": 2.7, "lion_8bit": 1.5}.get(name, 2.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_state_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")

    def network() -> dict[str, nn.Parameter]:
        torch.manual_seed(0)
        shapes = {"embed_tokens.weight": (700, 64), "layer.weight": (512, 384), "layer.bias": (384,)}
        return {key: nn.Parameter(torch.randn(shape, device=DEVICE)) for key, shape in shapes.items()}

    def run(named: dict[str, nn.Parameter], optimizer: Optimizer, steps: range) -> None:
        for number in steps:
            torch.manual_seed(number)
            for weight in named.values():
                weight.grad = torch.randn_like(weight)
            optimizer.step(1.0)

    straight, stopped = network(), network()
    whole = Optimizer(straight, config(name), lambda _: 1.0)
    run(straight, whole, range(6))
    first = Optimizer(stopped, config(name), lambda _: 1.0)
    run(stopped, first, range(3))
    save_file({key: value.cpu() for key, value in first.state().items()}, tmp_path / "optimizer.safetensors")
    second = Optimizer(stopped, config(name), lambda _: 1.0)
    second.load(load_file(tmp_path / "optimizer.safetensors"))
    if name.startswith("paged"):
        state = second.parts[0].state[stopped["layer.weight"]]
        assert state["state1"].is_paged and state["state1"].device.type == "cpu"
    run(stopped, second, range(3, 6))
    assert all(torch.equal(straight[key], stopped[key]) for key in straight)
