"""Bits per byte: against transformers' own numbers, and against what must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.render import Renderer
from luthier.evaluate.likelihood import Likelihood, likelihood
from luthier.model.causal import Model
from luthier.model.config import ModelConfig
from luthier.model.load import load_model, load_tokenizer

TEXTS = [
    "The violin maker planes the spruce top until it rings.",
    "制琴师把云杉面板刨薄，直到它发出声音。 " * 3,
    "a",
    "<|im_end|> is text here.",
]
LONG = "The weather is fine. " * 60  # several windows of the tiny model's 128 positions


@pytest.fixture(scope="module")
def opened(tiny_model_dir: Callable[..., Path]) -> tuple[Model, Renderer]:
    config = ModelConfig(path=str(tiny_model_dir("qwen2")), dtype="float32")
    tokenizer = load_tokenizer(config)
    return load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False), Renderer(tokenizer)


def by_transformers(folder: Path, text: str) -> tuple[float, int]:
    """Bits and tokens of a text that fits into the context, its first token at log2 of the vocabulary."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(text, split_special_tokens=True, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    nats = -logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
    return nats / math.log(2) + math.log2(model.config.vocab_size), ids.shape[1]


def test_the_sum_is_that_of_plain_transformers(
    opened: tuple[Model, Renderer], tiny_model_dir: Callable[..., Path]
) -> None:
    found = likelihood(*opened, TEXTS)
    expected = [by_transformers(tiny_model_dir("qwen2"), text) for text in TEXTS]
    assert found.bits == pytest.approx(sum(bits for bits, _ in expected), rel=1e-5)
    assert found.tokens == sum(tokens for _, tokens in expected)
    assert found.size == sum(len(text.encode()) for text in TEXTS)


def test_neither_batches_nor_the_order_of_documents_matter(opened: tuple[Model, Renderer]):
    texts = [*TEXTS, LONG]
    one = likelihood(*opened, texts)
    for other in (likelihood(*opened, texts, batch_tokens=1), likelihood(*opened, texts[::-1], batch_tokens=300)):
        assert other.bits == pytest.approx(one.bits, rel=1e-5)
        assert (other.tokens, other.size) == (one.tokens, one.size)
    added = likelihood(*opened, TEXTS) + likelihood(*opened, [LONG])
    assert added.bits == pytest.approx(one.bits, rel=1e-5)


@pytest.mark.parametrize("longest", [128, 33, 2])
def test_windows_judge_every_token_once(opened: tuple[Model, Renderer], longest: int, monkeypatch: pytest.MonkeyPatch):
    model, renderer = opened
    tokens = renderer.tokenizer(LONG).input_ids
    assert len(tokens) > 3 * 128
    monkeypatch.setattr(model, "max_length", longest)
    uniform = torch.zeros_like(model.head.weight)
    with torch.no_grad():
        kept = model.head.weight.clone()
        model.head.weight.copy_(uniform)  # every token equally likely: bits count the judged tokens
        found = likelihood(model, renderer, [LONG])
        model.head.weight.copy_(kept)
    assert found.tokens == len(tokens)
    assert found.bits == pytest.approx(len(tokens) * math.log2(model.vocabulary), rel=1e-6)


def test_no_text_has_no_bits(opened: tuple[Model, Renderer]):
    for found in (likelihood(*opened, []), likelihood(*opened, [""])):
        assert found == Likelihood(0.0, 0, 0)
