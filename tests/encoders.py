"""Tiny encoders made on the spot: real architectures, random weights, a WordPiece tokenizer of a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import LINES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "distilbert": ("distilbert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    "electra": ("electra", {"embedding_size": 16}),
    "albert": ("albert", {"embedding_size": 16}),
    "modernbert": (
        "modernbert",
        {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    ),
    "modernbert-mean": (
        "modernbert",
        {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3, "classifier_pooling": "mean"},
    ),
    "bart": (
        "bart",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "decoder_start_token_id": 3,
            "forced_eos_token_id": 3,
            "init_std": 0.2,
        },
    ),
    "deberta": ("deberta-v2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
}


def save_wordpiece(folder: Path) -> int:
    """Write a BERT tokenizer; returns its size."""
    from transformers import PreTrainedTokenizerFast

    # A learned vocabulary would be another one each time: the trainer breaks ties by chance.
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for line in LINES for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(line))}
    firsts, rests = {word[0] for word in words}, {f"##{character}" for word in words for character in word[1:]}
    pieces = dict.fromkeys([*SPECIAL, *sorted(firsts), *sorted(rests), *sorted(word[:4] for word in words)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    return len(fast)


def save_encoder(folder: Path, shape: str, seed: int = 0, auto: str = "AutoModelForMaskedLM", **changes: Any) -> Path:
    """Write a tokenizer and random weights of one architecture."""
    import transformers

    kind, own = ENCODERS[shape]
    size = {} if kind in ("distilbert", "bart") else SMALL
    vocabulary = save_wordpiece(folder)
    config = transformers.AutoConfig.for_model(
        kind, **{**size, "vocab_size": vocabulary, "max_position_embeddings": 130, "pad_token_id": 0, **own, **changes}
    )
    torch.manual_seed(seed)
    getattr(transformers, auto).from_config(config).save_pretrained(folder)
    return folder
