"""Layers written out by hand against transformers' own: outputs, and the gradient of every weight that moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.model import methods
from luthier.model.config import Freeze, Full, Lora, Method, ModelConfig
from luthier.model.layer import Keep
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.pointwise import Plain
from luthier.model.products import Product

SHAPES = ("qwen2", "qwen2-untied", "qwen3", "llama", "mistral")
METHODS: dict[str, Method] = {
    "full": Full(),
    "upper": Freeze(last_layers=1),
    "scattered": Freeze(pattern=r"v_proj|k_proj\.bias|post_attention|layers\.0\.mlp\.up"),
    "lora": Lora(rank=3, alpha=5),
    "some targets": Lora(rank=2, alpha=7, target=("q_proj", "v_proj", "down_proj")),
    "mlp only, rslora": Lora(rank=4, alpha=2, target=("gate_proj", "up_proj"), rslora=True),
    "with the head": Lora(rank=2, alpha=4, modules_to_save=("embed_tokens", "lm_head")),
}
Result = tuple[Tensor, dict[str, Tensor]]


def loaded(folder: Path, method: Method) -> Model:
    config = ModelConfig(path=str(folder))
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    methods.apply(model, method)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.trained().items():
            if "lora_B" in name or "norm" in name or "bias" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    return model


def batch_of(lengths: tuple[int, ...] = (9, 3, 9, 1, 14)) -> Batch:
    rng = np.random.default_rng(0)
    groups = [
        Group((Tokens(rng.integers(3, 390, n).astype(np.int32), rng.random(n).astype(np.float32).round(1)),))
        for n in lengths
    ]
    return collate(groups, range(len(groups)))


def run(model: Model, batch: Batch, *, opened: bool = False) -> Result:
    model.network.zero_grad()
    if opened:
        model.open_gradient()
    logprobs_T, _ = model.logprobs(batch)
    (logprobs_T * batch.weights_T).sum().backward()
    return logprobs_T.detach(), {name: w.grad.clone() for name, w in model.trained().items() if w.grad is not None}


def assert_same(left: Result, right: Result) -> None:
    torch.testing.assert_close(left[0], right[0], rtol=1e-5, atol=1e-5)
    assert left[1].keys() == right[1].keys()
    for name, gradient in left[1].items():
        torch.testing.assert_close(
            gradient, right[1][name], rtol=1e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
        assert gradient.any(), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layers_by_hand_equal_transformers(tiny_model_dir: Callable[[str], Path], shape: str, method: str) -> None:
    model, batch = loaded(tiny_model_dir(shape), METHODS[method]), batch_of()
    model.train_mode()
    expected = run(model, batch)
    assert model.by_hand(Plain()) is None
    keeps: tuple[Keep, ...] = ("all", "most", "some", "input")
    for keep in keeps:
        model.train_mode(keep)
        assert_same(run(model, batch), expected)
    assert len(expected[1]) == len(model.trained())


@pytest.mark.parametrize("keep", ["all", "input"])
def test_nothing_is_computed_below_the_first_thing_that_moves(
    tiny_model_dir: Callable[[str], Path], keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = loaded(tiny_model_dir("qwen2"), METHODS["lora"]), batch_of()
    model.train_mode()
    expected = run(model, batch)
    assert model.by_hand(Plain()) is None
    asked: list[Product] = []
    real = Product.input_gradient

    def spy(product: Product, dy_TO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(product)
        return real(product, dy_TO)

    monkeypatch.setattr(Product, "input_gradient", spy)
    model.train_mode(keep)
    assert_same(run(model, batch), expected)
    decoder: Any = model._decoder
    assert [layer.qkv in asked for layer in decoder.layers] == [False] + [True] * (len(decoder.layers) - 1)


@pytest.mark.parametrize("padded", [False, True])
def test_an_open_gradient_is_added_to(tiny_model_dir: Callable[..., Path], padded: bool) -> None:
    """The vocabulary of tied weights, whose rows' gradients go where the head's already are."""
    model, batch = loaded(tiny_model_dir("qwen2", tie_word_embeddings=True), METHODS["full"]), batch_of()
    embed: Any = model.base.get_input_embeddings()
    embed.padding_idx = int(batch.ids_T[3]) if padded else None
    model.train_mode()
    expected = run(model, batch)
    assert model.by_hand(Plain()) is None
    model.train_mode()
    for _ in range(2):
        assert_same(run(model, batch, opened=True), expected)
    assert model.runs_by_hand and embed.weight is model.head.weight


@pytest.mark.parametrize("quant", ["bnb", "fp8"])
def test_layers_by_hand_over_a_base_in_few_bits(tiny_model_dir: Callable[..., Path], quant: str) -> None:
    """The plain path writes fp8 weights out; by hand activations are rounded too, so only the direction agrees."""
    folder = tiny_model_dir("qwen2", hidden_size=64, head_dim=16)
    config = ModelConfig.model_validate({"path": str(folder), "quant": {"method": quant, "bits": 8}})
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    methods.apply(model, Lora(rank=3, alpha=5))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.trained().items():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.train_mode()
    batch = batch_of()
    expected = run(model, batch)
    assert model.by_hand(Plain()) is None
    keeps: tuple[Keep, ...] = ("all", "most", "some", "input")
    for keep in keeps:
        model.train_mode(keep)
        got = run(model, batch)
        if quant == "bnb":
            assert_same(got, expected)
            continue
        assert got[1].keys() == expected[1].keys()
        left, right = (torch.cat([value.flatten() for value in result[1].values()]) for result in (got, expected))
        assert torch.cosine_similarity(left, right, dim=0) > 0.9
        torch.testing.assert_close(got[0], expected[0], rtol=0.2, atol=0.5)
