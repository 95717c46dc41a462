"""A model from nothing: a tokenizer trained on text, and a Qwen2-shaped model with random weights.

Qwen2 because every tool knows it: plain transformers, vLLM and llama.cpp open the folder without a line of code.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from luthier.base.errors import ConfigError
from luthier.model.config import Shape
from luthier.model.load import quiet

SPECIAL = END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
"""Control tokens, with the ids 0, 1 and 2."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, chat_template: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text has tokens, whatever it was trained on.

    Text is normalised (NFC) and cut into words as Qwen2 does it, because transformers puts Qwen2's own cutting in
    place when it opens a Qwen2 model.  It decodes to the text it was given, up to that normalisation.  The token that
    ends a turn also ends a document.

    Raises:
        ConfigError: the text has fewer pairs to merge than the vocabulary has room for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ConfigError(
            f"the text is enough for {tokenizer.get_vocab_size()} tokens, not for {vocab_size}",
            where="--vocab_size",
            fix="Give more text, or a smaller vocabulary",
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = chat_template
    return wrapped


def write_untrained(folder: Path, tokenizer: PreTrainedTokenizerFast, shape: Shape, seed: int) -> int:
    """Write a model with random weights, tokenizer and generation settings; returns its number of parameters.

    The weights are a function of shape and seed, and the caller's random numbers are left alone.
    """
    end, pad = SPECIAL.index(TURN_END), SPECIAL.index(END_OF_TEXT)
    config = Qwen2Config(
        **shape.model_dump(),
        dtype="float32",
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.model_max_length = shape.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())
