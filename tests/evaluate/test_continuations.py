"""Likelihoods of continuations: against plain transformers, and against what must not matter."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.evaluate.continuations import Asked, Found, Scorer
from luthier.model.causal import Model
from luthier.model.config import ModelConfig
from luthier.model.load import load_model, load_tokenizer

SHAPES = ("qwen2", "llama", "mistral", "gemma2", "gpt2")


def opened(folder: Path) -> Model:
    config = ModelConfig(path=str(folder), dtype="float32")
    return load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)


def questions(shared: int, single: bool) -> list[Asked]:
    """Twelve questions behind a shared beginning, with two to four options."""
    draw = random.Random(3)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 300) for _ in range(length))

    start = ids(shared)
    return [
        Asked(
            start + ids(draw.randint(1, 20)), tuple(ids(1 if single else draw.randint(1, 6)) for _ in range(2 + n % 3))
        )
        for n in range(12)
    ]


def by_transformers(folder: Path, asked: Asked) -> list[tuple[float, bool]]:
    # Unasked, transformers 5.17 takes SDPA for Gemma 2 and leaves out the cap on its scores.
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    found: list[tuple[float, bool]] = []
    for option in asked.options:
        ids = torch.tensor([asked.prompt + option])
        with torch.no_grad():
            logits = network(ids).logits[0].double()
        rows = logits[len(asked.prompt) - 1 : -1].log_softmax(-1)
        tokens = torch.tensor(option)
        logprob = rows.gather(1, tokens[:, None]).sum().item()
        found.append((logprob, bool((rows.argmax(-1) == tokens).all())))
    return found


def same(one: list[Found], other: list[Found]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=2e-4)
        assert left.greedy == right.greedy


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("shared", "single"), [(0, True), (0, False), (40, True), (40, False)])
def test_the_sums_are_those_of_plain_transformers(
    tiny_model_dir: Callable[..., Path], shape: str, shared: int, single: bool
) -> None:
    folder = tiny_model_dir(shape)
    asked = questions(shared, single)
    found = Scorer(opened(folder)).score(asked)
    for one, got in list(zip(asked, found, strict=True))[::4]:
        expected = by_transformers(folder, one)
        assert got.logprobs == pytest.approx([logprob for logprob, _ in expected], abs=2e-4)
        assert list(got.greedy) == [greedy for _, greedy in expected]
        assert not got.cut


@pytest.mark.parametrize("single", [True, False])
def test_batches_order_and_sharing_do_not_matter(tiny_model_dir: Callable[..., Path], single: bool) -> None:
    model = opened(tiny_model_dir("qwen2"))
    asked = questions(40, single)
    found = Scorer(model).score(asked)
    same(found, Scorer(model, batch_tokens=1).score(asked))
    same(found, Scorer(model, batch_tokens=90).score(asked))
    same(found, Scorer(model, share=False).score(asked))
    same(found[::-1], Scorer(model).score(asked[::-1]))
    same(found, [Scorer(model).score([one])[0] for one in asked])
    scorer = Scorer(model)  # its kept beginning serves again, and gives way to another
    same(found, scorer.score(asked))
    same(Scorer(model).score(questions(50, single)), scorer.score(questions(50, single)))
    same(found, scorer.score(asked))


def test_a_prompt_that_does_not_fit_loses_its_beginning(tiny_model_dir: Callable[..., Path]) -> None:
    model = opened(tiny_model_dir("qwen2"))
    (long,) = questions(0, False)[:1]
    long = Asked(tuple(range(3, 203)), long.options)
    room = model.max_length - max(map(len, long.options))
    cut, whole = Scorer(model).score([long, Asked(long.prompt[-room:], long.options)])
    assert cut.cut and not whole.cut
    assert cut.logprobs == pytest.approx(whole.logprobs, abs=1e-5)
