"""Tiny models made on the spot: real architectures, random weights, a tokenizer trained on a few lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

LINES = [
    "The violin maker planes the spruce top until it rings.",
    "What is your name? I am a small model, made to learn.",
    "Numbers: 0 1 2 3 4 5 6 7 8 9, and punctuation; (brackets) [too] {braces}.",
    "制琴师把云杉面板刨薄，直到它发出声音。",
    "你叫什么名字？我是一个小模型，今天开始学习。",
    "天气很好，我们去公园散步，然后回家做饭。",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "mistral": ("mistral", {"sliding_window": 4}),
    "phi3": ("phi3", {"sliding_window": 5}),
    "gemma2": ("gemma2", {"sliding_window": 4, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {"sliding_window": 4, "num_hidden_layers": 7, "query_pre_attn_scalar": 8}),
    "granite": ("granite", {"logits_scaling": 4.0, "attention_multiplier": 0.3, "embedding_multiplier": 3.0}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "intermediate_size": 64}),
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Several test processes share few cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real data sets; a test that needs it is skipped where it is absent."""
    root = Path(__file__).parents[1]
    folder = (root / os.environ.get("LUTHIER_TEST_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}")
    return folder


def save_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE tokenizer with a ChatML template; returns its size."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def save_model(folder: Path, vocabulary: int, shape: str, seed: int = 0, **changes: Any) -> None:
    """Write random weights of one architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, own = SHAPES[shape]
    size = {} if kind in ("gpt2", "mamba") else SMALL
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **{**size, **own, **changes})
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config)
    network.generation_config.eos_token_id = 2
    network.generation_config.pad_token_id = 0
    network.save_pretrained(folder)


@pytest.fixture(scope="session")
def nano_dir() -> Path:
    """The bundled model: trained weights and a real bilingual tokenizer, for what random weights cannot show."""
    from luthier.model.nano import nano_folder

    return nano_folder()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model_dir(shape="qwen2", seed=0, **config)` -> a model folder with tokenizer, made once per session."""
    made: dict[str, Path] = {}

    def make(shape: str = "qwen2", seed: int = 0, **changes: Any) -> Path:
        key = f"{shape}-{seed}-{sorted(changes.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{shape}-{seed}")
            save_model(folder, save_tokenizer(folder), shape, seed, **changes)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short chats in two languages, all different."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows: list[str] = []
    for number in range(40):
        question, answer = (
            (f"What is {number} and one?", f"It is {number + 1}. " * (1 + number % 3))
            if number % 2
            else (f"{number} 加一等于多少？", f"等于 {number + 1}。" * (1 + number % 3))
        )
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"messages": messages}, ensure_ascii=False))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def job(tmp_path: Path, tiny_model_dir: Callable[..., Path], chats: Path) -> Any:
    """A `processes.Job` in an empty folder."""
    from processes import Job  # loads everything that its processes need

    return Job(tmp_path, tiny_model_dir("qwen2"), chats)
