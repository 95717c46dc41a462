"""What the benchmarks train: a Qwen2-shaped model of about 5M parameters and chats whose lengths spread like real ones.

Everything is made here from a seed, so the benchmarks need no network and no download.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in ("a", "e", "i", "o", "u", "an", "er", "in", "ol", "us")]
HANZI = [chr(0x4E00 + 7 * i) for i in range(1500)]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The generation marks let both sides train the very same tokens: the assistant's text and its end.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def sentences(rng: random.Random, words: list[str], weights: list[float], length: int) -> str:
    """About `length` words, Zipf-distributed, in clauses; one text in five in Chinese characters."""
    clauses: list[str] = []
    chinese = rng.random() < 0.2
    while length > 0:
        size = min(length, rng.randint(3, 12))
        length -= size
        drawn = rng.choices(HANZI, k=size) if chinese else rng.choices(words, weights, k=size)
        clauses.append("".join(drawn) if chinese else " ".join(drawn))
    return "，".join(clauses) + "。" if chinese else ", ".join(clauses).capitalize() + "."


def make_chats(path: Path, rows: int, seed: int = 0) -> None:
    """Chats in the messages shape: 1-4 exchanges, log-normal lengths (median about 170 tokens, a long tail)."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.choice((1, 2, 2, 3)))) for _ in range(5000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            messages: list[dict[str, str]] = []
            for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
                question = max(2, min(150, round(rng.lognormvariate(2.5, 0.8))))
                answer = max(2, min(500, round(rng.lognormvariate(3.7, 1.0))))
                messages.append({"role": "user", "content": sentences(rng, words, weights, question)})
                messages.append({"role": "assistant", "content": sentences(rng, words, weights, answer)})
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def make_tokenizer(lines: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of up to 8,192 tokens, trained on the lines, with a template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(folder: Path, chats: Path) -> None:
    """A tokenizer trained on the chats, and a random model of about 5M parameters."""
    tokenizer = make_tokenizer(chats.read_text(encoding="utf-8").splitlines()[:2000])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
