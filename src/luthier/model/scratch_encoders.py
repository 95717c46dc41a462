"""Encoders from nothing: BERT and ModernBERT with a WordPiece tokenizer, T5 with a Unigram one, weights at random.

The tokenizers are transformers' own classes with a vocabulary learned from text, so plain transformers opens what is
written here as what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from luthier.base.errors import ConfigError
from luthier.model.config import Shape
from luthier.model.load import quiet
from luthier.model.unigram import unigram_pieces

BERT_SPECIAL = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
T5_SPECIAL = "<pad>", "</s>", "<unk>"
SENTINELS = 100
"""Tokens that stand for hidden spans in T5."""

_NEAR, _FAR_EVERY = 32, 3
"""Tokens that a ModernBERT layer sees around each, and of how many layers one sees them all: a smaller window than the
published 128, since small models are given short texts."""


def bert_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer; each Chinese character is a token of its own, as in BERT, and case is kept.

    Args:
        texts: gone through twice.

    Raises:
        ConfigError: the text has too few different words for the vocabulary.
    """
    blank: Any = BertTokenizer(do_lower_case=False)
    # The trainer numbers characters inside words as it meets them, in an order that changes from run to run, and breaks
    # ties by these numbers.  Told all characters beforehand, it learns the same each time.
    first = _wordpieces(blank, texts, 1, BERT_SPECIAL)
    characters = sorted(first.keys() - set(BERT_SPECIAL))
    vocabulary = _wordpieces(blank, texts, vocab_size, (*BERT_SPECIAL, *characters))
    _enough(len(vocabulary), vocab_size)
    return BertTokenizer(vocab=vocabulary, do_lower_case=False)


def _wordpieces(blank: Any, texts: Iterable[str], size: int, given: Sequence[str]) -> dict[str, int]:
    """A learned vocabulary that begins with what is given."""
    learner = _like(blank, models.WordPiece(unk_token="[UNK]"))
    learner.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(given), show_progress=False)
    )
    return learner.get_vocab()


def t5_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with T5's control tokens and its hundred sentinels, which end the vocabulary.

    Args:
        texts: gone through several times.

    Raises:
        ConfigError: the text has too few different words for the vocabulary, or too many characters.
    """
    blank: Any = T5Tokenizer()
    learner = _like(blank, models.Unigram())
    # Whole Chinese sentences would be learned from as if they were words.  Punctuation apart also keeps the names of
    # control tokens in a text from being learned as pieces.
    learner.pre_tokenizer = pre_tokenizers.Sequence([learner.pre_tokenizer, pre_tokenizers.Punctuation()])
    given = len(T5_SPECIAL) + SENTINELS
    pieces = unigram_pieces(learner, texts, vocab_size - given)
    _enough(len(pieces) + given, vocab_size)
    special = [(name, 0.0) for name in T5_SPECIAL]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(SENTINELS))]
    return T5Tokenizer(vocab=[*special, *pieces, *sentinels])


def _like(blank: Any, model: Any) -> Tokenizer:
    """A tokenizer to learn with, that cuts text as the finished one will."""
    learner = Tokenizer(model)
    backend = blank.backend_tokenizer
    if backend.normalizer is not None:
        learner.normalizer = backend.normalizer
    learner.pre_tokenizer = backend.pre_tokenizer
    return learner


def _enough(found: int, wanted: int) -> None:
    if found > wanted:
        raise ConfigError(
            f"the characters of the text alone make {found} tokens, more than {wanted}",
            where="--vocab_size",
            fix="Give a larger vocabulary, or a text with fewer rare characters",
        )
    if found < wanted:
        raise ConfigError(
            f"the text is enough for {found} tokens, not for {wanted}",
            where="--vocab_size",
            fix="Give more text, or a smaller vocabulary",
        )


def write_encoder(folder: Path, tokenizer: PreTrainedTokenizerFast, shape: Shape, seed: int) -> int:
    """Write a BERT, a ModernBERT or a T5 with random weights and its tokenizer; returns its number of parameters.

    The weights are a function of shape and seed, and the caller's random numbers are left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _MODELS[shape.architecture](shape)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.model_max_length = shape.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def _size(shape: Shape) -> dict[str, Any]:
    """What both kinds of encoders call by the same names."""
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "initializer_range", "tie_word_embeddings",
    )  # fmt: skip
    return shape.model_dump(include=set(names))


def _bert(shape: Shape) -> PreTrainedModel:
    dropout = 0.1 if shape.dropout is None else shape.dropout
    config = BertConfig(
        **_size(shape),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=0,
        dtype="float32",
    )
    return BertForMaskedLM(config)


def _modernbert(shape: Shape) -> PreTrainedModel:
    dropout = shape.dropout or 0.0
    pad, _, start, end, _ = range(len(BERT_SPECIAL))
    far: dict[str, Any] = {"global_attn_every_n_layers": _FAR_EVERY}  # not among the names that its type tells
    config = ModernBertConfig(
        **_size(shape),
        local_attention=_NEAR,
        embedding_dropout=dropout,
        attention_dropout=dropout,
        mlp_dropout=dropout,
        pad_token_id=pad,
        cls_token_id=start,
        bos_token_id=start,
        sep_token_id=end,
        eos_token_id=end,
        dtype="float32",
        **far,
    )
    return ModernBertForMaskedLM(config)


def _t5(shape: Shape) -> PreTrainedModel:
    more: dict[str, Any] = {"decoder_start_token_id": 0, "tie_word_embeddings": shape.tie_word_embeddings}
    config = T5Config(
        vocab_size=shape.vocab_size,
        d_model=shape.hidden_size,
        d_kv=shape.hidden_size // shape.num_attention_heads,
        d_ff=shape.intermediate_size,
        num_layers=shape.num_hidden_layers,
        num_heads=shape.num_attention_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.1 if shape.dropout is None else shape.dropout,
        pad_token_id=0,
        eos_token_id=1,
        dtype="float32",
        **more,
    )
    return T5ForConditionalGeneration(config)


_MODELS: dict[str, Callable[[Shape], PreTrainedModel]] = {"bert": _bert, "modernbert": _modernbert, "t5": _t5}
