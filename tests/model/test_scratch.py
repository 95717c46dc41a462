"""New models: tokenizers that are Qwen2's own once transformers has opened them, and weights that follow the seed."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from luthier.base.errors import ConfigError
from luthier.data.bundled import CHATML
from luthier.model.config import Shape
from luthier.model.scratch import train_tokenizer, write_untrained
from luthier.model.scratch_encoders import bert_tokenizer, write_encoder

TEXTS = [
    "The violin maker planes the spruce top until it rings, and then it's ready.",
    "制琴师把云杉面板刨薄，直到它发出声音。天气很好，我们去公园散步。",
    "Numbers: 1234567890; def f(x):\n\treturn x ** 2\n\n",
]
SHAPE = Shape(
    vocab_size=320,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, SHAPE.vocab_size, CHATML)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    made = tmp_path_factory.mktemp("untrained")
    write_untrained(made, tokenizer, SHAPE, seed=1)
    return made


@given(text=st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_transformers_opens_it_as_qwen2_with_the_same_ids(folder: Path, tokenizer: PreTrainedTokenizerFast):
    opened = AutoTokenizer.from_pretrained(folder)
    assert type(opened).__name__.startswith("Qwen2Tokenizer")
    for text in [*TEXTS, "I'LL  go\r\n\r\n 42nd  x", "e\u0301 \u00e9"]:
        assert opened(text).input_ids == tokenizer(text).input_ids
    assert (opened.eos_token, opened.pad_token, opened.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert opened.model_max_length == 64
    assert len(opened) == 320


def test_the_model_is_what_the_shape_says(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    embedding, attention, feed_forward = 320 * 16, 2 * (16 * 16 + 16 * 8) + 16 + 2 * 8, 3 * 16 * 32
    assert sum(weight.numel() for weight in model.parameters()) == embedding + 2 * (attention + feed_forward + 32) + 16
    assert model.config.max_position_embeddings == 64
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.generation_config.pad_token_id == 0
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_weights_follow_the_seed_and_leave_other_random_numbers_alone(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerFast
):
    before = torch.random.get_rng_state()
    counts = [write_untrained(tmp_path / str(seed), tokenizer, SHAPE, seed) for seed in (1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert counts[0] == counts[1] == sum(w.numel() for w in load_file(tmp_path / "1" / "model.safetensors").values())
    first, again, other = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "1", tmp_path / "2"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_too_little_text_for_the_vocabulary():
    with pytest.raises(ConfigError, match="enough for 2"):
        train_tokenizer(["a b"], 4096, CHATML)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3, "num_key_value_heads": 1}, "even multiple of 3"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"vocab_size": 100}, "greater than or equal to 300"),
        ({"dropout": 0.1}, "qwen2 has no dropout"),
    ],
)
def test_shapes_that_cannot_be(wrong: dict[str, float], said: str):
    with pytest.raises(ValidationError, match=said):
        Shape.model_validate(wrong)


@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
def test_encoders_drop_what_the_shape_says(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, dropout: float | None):
    kept = 0.1 if dropout is None else dropout
    for architecture in ("bert", "modernbert", "t5"):
        shape = Shape.model_validate({**SHAPE.model_dump(), "architecture": architecture, "dropout": dropout})
        write_encoder(tmp_path / architecture, tokenizer, shape, seed=1)
    bert, t5 = (AutoConfig.from_pretrained(tmp_path / name) for name in ("bert", "t5"))
    assert (bert.hidden_dropout_prob, bert.attention_probs_dropout_prob, t5.dropout_rate) == (kept, kept, kept)
    modern = AutoConfig.from_pretrained(tmp_path / "modernbert")
    assert {modern.embedding_dropout, modern.attention_dropout, modern.mlp_dropout} == {dropout or 0.0}


def test_the_same_text_gives_the_same_word_pieces():
    texts = [" ".join(f"{a}{b}{a}" for b in "klmnopqr") + "\u4f60\u597d" for a in "abcdefgh"]
    learned = [bert_tokenizer(texts, 60).get_vocab() for _ in range(5)]
    assert all(vocabulary == learned[0] for vocabulary in learned)
    assert {"\u4f60", "\u597d"} <= learned[0].keys() and len(learned[0]) == 60
