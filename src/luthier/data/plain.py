"""A text, or two, as the tokens of a model that is to judge them: control tokens around, no template."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from luthier.data.config import Overlong


@dataclass(frozen=True, slots=True)
class Words:
    """What a tokenizer makes of a text: ids int32 [T], segments int8 [T] where the model tells two texts apart."""

    ids: NDArray[np.int32]
    segments: NDArray[np.int8] | None
    cut: bool
    """Whether the end of the text was left out."""


class Plain:
    """A tokenizer used without a chat template.  Control tokens inside a text are text.

    Args:
        max_length: longest sequence; longer texts lose their end under `truncate`, two texts the longer one's first,
            and keep the control tokens behind it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int, overlong: Overlong):
        self.tokenizer, self.max_length, self.overlong = tokenizer, max_length, overlong
        self._segments = "token_type_ids" in tokenizer.model_input_names
        self._separates = tokenizer.sep_token is not None
        # Taken at once: a tokenizer remembers how it was last asked to cut texts, and so would its hash.
        parts = (tokenizer.backend_tokenizer.to_str(), str(max_length), overlong)
        self.fingerprint = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        """Hash of all that the tokens of a text depend on, besides the text."""

    def words(self, text: str, pair: str | None = None) -> Words:
        """The tokens of a text or of a pair of texts; where a tokenizer has no separator, a line break is one."""
        if pair is not None and not self._separates:
            text, pair = f"{text}\n{pair}", None
        options: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
        whole = self.tokenizer(text, pair, **options)
        cut = len(whole["input_ids"]) > self.max_length and self.overlong == "truncate"
        if cut:
            whole = self.tokenizer(text, pair, truncation=True, max_length=self.max_length, **options)
        segments = np.array(whole["token_type_ids"], dtype=np.int8) if self._segments else None
        return Words(np.array(whole["input_ids"], dtype=np.int32), segments, cut)

    def bare(self, text: str) -> tuple[NDArray[np.int32], list[tuple[int, int]]]:
        """The tokens of a text without any around them, and the characters [start, end) that each stands for."""
        options: dict[str, Any] = {"split_special_tokens": True, "add_special_tokens": False, "verbose": False}
        found = self.tokenizer(text, return_offsets_mapping=True, **options)
        return np.array(found["input_ids"], dtype=np.int32), found["offset_mapping"]

    def framed(self, before: str, text: str, after: str) -> tuple[NDArray[np.int32], bool]:
        """The tokens of a text between two that may hold control tokens, and whether its end was left out."""
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        first, last = (self.tokenizer(part, **options)["input_ids"] for part in (before, after))
        ids = self.tokenizer(text, split_special_tokens=True, **options)["input_ids"]
        room = max(0, self.max_length - len(first) - len(last))
        cut = len(ids) > room and self.overlong == "truncate"
        return np.array([*first, *(ids[:room] if cut else ids), *last], dtype=np.int32), cut
