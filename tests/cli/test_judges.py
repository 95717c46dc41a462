"""What local models say of rows, against the same model asked directly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.cli.judges import Judge
from luthier.model.config import ModelConfig
from luthier.prepare.models import ModelVerbConfig

TEXTS = ["What is your name?", "天气很好，我们去公园散步", "The violin maker planes the top until it rings."]


@pytest.fixture(params=[64, 8192])
def judge(request: Any, tiny_model_dir: Callable[..., Path]) -> Judge:
    """A judge on a tiny model, with few and with many tokens at once."""
    path = str(tiny_model_dir("qwen2"))
    return Judge(ModelVerbConfig(model=ModelConfig(path=path), device="cpu", batch_tokens=request.param))


@pytest.fixture
def direct(tiny_model_dir: Callable[..., Path]) -> Callable[[str, str], tuple[float, int]]:
    """Sum of the log-probabilities of an answer's tokens, and how many count, from plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model_dir("qwen2")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def likelihood(prompt: str, answer: str) -> tuple[float, int]:
        head: list[int] = []
        if prompt:
            messages = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            head = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([head + tokenizer(answer, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].float().log_softmax(dim=-1)
        found = logprobs.gather(1, ids[0, 1:, None])[:, 0][max(0, len(head) - 1) :]
        return float(found.sum()), len(found)

    return likelihood


def test_losses_equal_transformers(judge: Judge, direct: Any) -> None:
    prompts = ["", "你叫什么名字？", "Sing."]
    expected = [-total / n for total, n in map(direct, prompts, TEXTS)]
    assert judge.loss(prompts, TEXTS) == pytest.approx(expected, rel=1e-4)


def test_choices_are_a_distribution_over_the_options(judge: Judge, direct: Any) -> None:
    options = ["yes", "no", "maybe so"]
    totals = np.array([[direct(prompt, option)[0] for option in options] for prompt in TEXTS])
    expected = totals - np.log(np.exp(totals - totals.max(1, keepdims=True)).sum(1, keepdims=True))
    expected -= totals.max(1, keepdims=True)
    found = judge.choose(TEXTS, options)
    assert found == pytest.approx(expected, abs=1e-3)
    assert np.exp(found).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_embeddings_are_means_of_hidden_states(judge: Judge, tiny_model_dir: Callable[..., Path]) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = tiny_model_dir("qwen2")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = judge.embed([*TEXTS, ""])
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected = model(ids).last_hidden_state[0].mean(dim=0).numpy()
        assert found[row] == pytest.approx(expected, abs=1e-4)
    assert not found[3].any()


def test_what_the_model_cannot_hold_is_cut_and_what_is_empty_is_no_number(judge: Judge) -> None:
    found = judge.loss(["x" * 1000, "", "q"], ["a" * 1000, "", "ok"])
    assert np.isnan(found[1]) and np.isfinite(found[[0, 2]]).all()
