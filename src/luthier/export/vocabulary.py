"""A tokenizer in the words of GGUF: its pieces and their kinds, its merges, and the name of how it cuts text.

llama.cpp knows each way of cutting text by a name and has a program for it; a pattern it has no name for cannot be
written down, and is refused rather than cut differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from luthier.base.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens in GGUF."""

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    rf"{_LETTERS}|\p{{N}}|{_REST}": "qwen2",
    rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What stands under `tokenizer.ggml` in a GGUF file."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    space_prefix: bool | None = None
    """Whether a space is put before the text; None where the format has no such word."""


def vocabulary(tokenizer: PreTrainedTokenizerFast, rows: int) -> Vocabulary:
    """The vocabulary of a byte-level or SentencePiece-like BPE tokenizer, filled up to `rows` of the embedding.

    Raises:
        ModelError: code `unknown_tokenizer`, for any other.
    """
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise _unknown(f"of type {model['type']}")
    like_sentencepiece = bool(model.get("byte_fallback"))
    pre = "default" if like_sentencepiece else _cut(state["pre_tokenizer"])
    tokens, kinds = _pieces(tokenizer, rows, like_sentencepiece)
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if like_sentencepiece:
        scores = _scores(tokens, pairs)
        return Vocabulary("llama", pre, tokens, kinds, (), scores, _puts_space(state))
    return Vocabulary("gpt2", pre, tokens, kinds, tuple(" ".join(pair) for pair in pairs))


def _pieces(
    tokenizer: PreTrainedTokenizerFast, rows: int, bytes_apart: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    by_id = {number: piece for piece, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens: list[str] = []
    kinds: list[int] = []
    for number in range(rows):
        piece = by_id.get(number)
        if piece is None:
            tokens.append(f"[PAD{number}]")
            kinds.append(UNUSED)
            continue
        kind = NORMAL
        if number in added:
            kind = CONTROL if added[number].special else USER_DEFINED
        elif bytes_apart and len(piece) == 6 and piece.startswith("<0x"):
            kind = BYTE
        if bytes_apart and piece == tokenizer.unk_token:
            kind = UNKNOWN
        tokens.append(piece)
        kinds.append(kind)
    return tuple(tokens), tuple(kinds)


def _cut(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """The name for how text is cut before pairs are merged."""
    parts = [pre_tokenizer] if pre_tokenizer and pre_tokenizer["type"] != "Sequence" else []
    parts = parts or (pre_tokenizer or {}).get("pretokenizers", [])
    if not parts or parts[-1]["type"] != "ByteLevel" or parts[-1]["add_prefix_space"]:
        raise _unknown("that is not byte-level")
    if len(parts) == 1 and parts[0]["use_regex"]:
        return "gpt-2"
    pattern = parts[0].get("pattern", {}).get("Regex") if len(parts) == 2 and parts[0]["type"] == "Split" else None
    if pattern not in _PATTERNS or parts[0]["behavior"] != "Isolated" or parts[-1]["use_regex"]:
        raise _unknown("that cuts text in a way of its own")
    return _PATTERNS[pattern]


def _scores(tokens: tuple[str, ...], pairs: list[list[str]]) -> tuple[float, ...]:
    """SentencePiece joins the pair with the best score; here that is the pair merged first."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    return tuple(-float(ranks[piece]) if piece in ranks else -1e6 if len(piece) > 1 else 0.0 for piece in tokens)


def _puts_space(state: Mapping[str, Any]) -> bool:
    """Whether the text gets a space in front, by the normalizer or by the pre-tokenizer."""
    normalizer = state["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" for step in steps):
        return True
    return (state["pre_tokenizer"] or {}).get("prepend_scheme", "never") != "never"


def _unknown(what: str) -> ModelError:
    return ModelError(
        f"a tokenizer {what} cannot be written into a GGUF file so that it gives the same tokens",
        where="tokenizer.json",
        code="unknown_tokenizer",
        fix="Byte-level BPE as in Qwen, Llama 3 and GPT-2, and BPE as in Llama 2, can",
    )
