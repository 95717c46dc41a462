"""Masked language modelling: hidden words are predicted from both sides.

    loss = sum_t w_t -log p(token_t | what is seen) / sum_t w_t    over the hidden tokens t

Texts are kept as tokens with the number of the word each belongs to; control tokens and masks come when a text is used,
drawn from (seed, epoch, sample).

Legend: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from luthier.base.errors import ConfigError
from luthier.base.records import Chat, Record, Task, Text
from luthier.data.batch import Batch, Group, Tokens
from luthier.data.corrupt import mask_words
from luthier.data.plain import Plain
from luthier.engine.objective import Terms
from luthier.model.heads import Head
from luthier.model.load import Model
from luthier.objectives.config import Mlm
from luthier.objectives.predicted import token_terms
from luthier.objectives.setting import Plainly, Setting
from luthier.prepare.words import cut


def masked(config: Mlm, setting: Setting) -> Masked:
    """The objective for a model.  Raises ConfigError where its tokenizer has no mask."""
    if setting.tokenizer.mask_token is None:
        raise ConfigError(
            "the tokenizer of this model has no mask token",
            where="--task_type mlm",
            fix="Take an encoder such as BERT; luthier init --architecture bert makes one",
        )
    before, after = control_tokens(setting.tokenizer)
    mask: Any = setting.tokenizer.mask_token_id
    return Masked(config, setting.plain, before, after, mask)


@dataclass(frozen=True)
class Masked(Plainly):
    """Training of an encoder on texts.

    Args:
        before, after: control tokens around a text.
    """

    config: Mlm
    plain: Plain
    before: tuple[int, ...]
    after: tuple[int, ...]
    mask_id: int
    task: Task = "language"
    stop_ids: frozenset[int] = frozenset()

    @property
    def head(self) -> Head:
        return Head("masked")

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record."""
        return f"mlm:{self.config.whole_words}:{self.plain.fingerprint}"

    @property
    def note(self) -> str | None:
        """What is hidden."""
        what = "words" if self.config.whole_words else "tokens"
        return f"{self.config.probability:.0%} of the {what} are hidden, others in each epoch"

    @property
    def longest(self) -> int:
        """Tokens of a text that have room beside the control tokens."""
        return self.plain.max_length - len(self.before) - len(self.after)

    def encode(self, record: Record) -> Group | None:
        """The tokens of a text without control tokens; what each is to predict is for now the number of its word."""
        text, weight = text_of(record)
        ids, offsets = self.plain.bare(text)
        if not len(ids) or not weight:
            return None
        words = word_numbers(text, offsets) if self.config.whole_words else np.arange(len(ids), dtype=np.int32)
        return Group((Tokens(ids, np.full(len(ids), weight, dtype=np.float32), words),), bare=self.longest)

    def vary(self, group: Group, rng: np.random.Generator) -> Group:
        """The text as the model sees it, and what it is to predict where."""
        tokens = group.sequences[0]
        assert tokens.targets is not None, "encode has numbered the words"
        seen, chosen = mask_words(
            tokens.ids,
            tokens.targets.astype(np.int64) - int(tokens.targets.min()),
            rng,
            mask_id=self.mask_id,
            vocabulary=len(self.plain.tokenizer),
            probability=self.config.probability,
            masked=self.config.masked,
            random=self.config.random,
        )
        around = len(self.before), len(self.after)
        return Group(
            (
                Tokens(
                    np.array([*self.before, *seen, *self.after], dtype=np.int32),
                    np.pad(tokens.weights * chosen, around),
                    np.pad(tokens.ids, around),
                ),
            )
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"mlm": batch.weights_T.sum(dtype=torch.float64)}

    def sums(self, model: Model, batch: Batch) -> Terms:
        return token_terms("mlm", model, batch)


def text_of(record: Record) -> tuple[str, float]:
    """What a text or a chat says, and its weight."""
    if isinstance(record, Text):
        return record.text, record.weight
    assert isinstance(record, Chat), "rows are read for the task of language"
    return "\n".join(message.content for message in record.messages if message.content), record.weight


def word_numbers(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """The word each token belongs to, by its last character; Chinese is cut by jieba, other text at its spaces and
    marks.

    Args:
        offsets: first and last character (exclusive) of each token.

    Raises:
        MissingExtra: jieba, when there is Chinese.
    """
    ends = np.cumsum([len(piece.text) for piece in cut(text)])
    last = np.array([max(end - 1, 0) for _, end in offsets])
    return np.searchsorted(ends, last, side="right").astype(np.int32)


def control_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a tokenizer writes before and behind a text."""
    whole: list[int] = tokenizer("a")["input_ids"]
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return tuple(whole[:start]), tuple(whole[start + len(bare) :])
