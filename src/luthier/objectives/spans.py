"""T5's span corruption: the encoder reads a text with spans behind sentinels, the decoder writes what they hide.

    loss = sum_t w_t -log p(target_t | source, targets before) / sum_t w_t

Texts are kept as bare tokens, in pieces that fill the encoder's sequence once their spans are hidden; spans are drawn
from (seed, epoch, sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.base.errors import ConfigError
from luthier.base.records import Record, Task
from luthier.data.batch import Batch, Group, Tokens
from luthier.data.corrupt import Ids, hide_spans, noise_spans, source_length
from luthier.data.plain import Plain
from luthier.engine.objective import Terms
from luthier.model.config import ModelConfig
from luthier.model.folder import model_folder, read_json
from luthier.model.heads import Head
from luthier.model.load import Model
from luthier.objectives.config import SpanCorruption
from luthier.objectives.masked import text_of
from luthier.objectives.predicted import token_terms
from luthier.objectives.setting import Plainly, Setting


def spans(config: SpanCorruption, setting: Setting) -> Spans:
    """The objective for a model.

    Raises:
        ConfigError: its tokenizer has no sentinels, or it is no encoder with a decoder.
    """
    tokenizer: Any = setting.tokenizer
    names = (f"<extra_id_{number}>" for number in range(len(tokenizer)))
    found = takewhile(
        lambda token: token not in (None, tokenizer.unk_token_id), map(tokenizer.convert_tokens_to_ids, names)
    )
    sentinels = tuple(found)
    if not sentinels:
        raise ConfigError(
            "the tokenizer of this model has no sentinels <extra_id_0>, <extra_id_1> ...",
            where="--task_type span_corruption",
            fix="Take a T5; luthier init --architecture t5 makes one",
        )
    assert isinstance(tokenizer.eos_token_id, int), "T5 ends its texts"
    return Spans(config, setting.plain, sentinels, start_token(setting.model), tokenizer.eos_token_id)


def start_token(model: ModelConfig) -> int:
    """The token that the model's decoder begins with.  Raises ConfigError."""
    config = read_json(model_folder(model) / "config.json")
    token = config.get("decoder_start_token_id")
    if not isinstance(token, int):
        raise ConfigError(
            "its config.json names no decoder_start_token_id",
            where=model.path,
            fix="Take a model of an encoder and a decoder, such as T5 or BART",
        )
    return token


@dataclass(frozen=True)
class Spans(Plainly):
    """Training of an encoder and a decoder on texts.

    Args:
        sentinels: tokens that stand for hidden spans, in order.
        start: the token the decoder begins with.
        end: the token that ends source and target.
    """

    config: SpanCorruption
    plain: Plain
    sentinels: tuple[int, ...]
    start: int
    end: int
    task: Task = "language"
    stop_ids: frozenset[int] = frozenset()

    @property
    def head(self) -> Head:
        return Head("seq2seq")

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record."""
        return f"spans:{self.longest}:{self.plain.fingerprint}"

    @property
    def note(self) -> str | None:
        """What is hidden."""
        return f"{self.config.density:.0%} of the tokens are hidden in spans, others in each epoch"

    @property
    def longest(self) -> int:
        """Tokens of a text that become one source."""
        longest = self.plain.max_length
        return source_length(longest, density=self.config.density, mean_span=self.config.mean_span)[0]

    def encode(self, record: Record) -> Group | None:
        """The tokens of a text without control tokens."""
        text, weight = text_of(record)
        ids, _ = self.plain.bare(text)
        if len(ids) < 2 or not weight:
            return None
        return Group((Tokens(ids, np.full(len(ids), weight, dtype=np.float32)),), bare=self.longest)

    def vary(self, group: Group, rng: np.random.Generator) -> Group:
        """Source and target."""
        tokens = group.sequences[0]
        hidden = noise_spans(len(tokens), rng, density=self.config.density, mean_span=self.config.mean_span)
        source, target = hide_spans(tokens.ids, hidden, self.sentinels, self.end)
        return source_and_target(source, target, self.start, float(tokens.weights[0]))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"spans": batch.weights_T.sum(dtype=torch.float64)}

    def sums(self, model: Model, batch: Batch) -> Terms:
        return token_terms("spans", model, batch)


def source_and_target(source: Sequence[int] | Ids, target: Sequence[int] | Ids, start: int, weight: float) -> Group:
    """What an encoder reads, and what a decoder that begins with `start` is to write."""
    written = np.array([start, *target], dtype=np.int32)
    weights = np.full(len(written), weight, dtype=np.float32)
    weights[0] = 0
    read = np.array(source, dtype=np.int32)
    return Group((Tokens(read, np.zeros(len(read), dtype=np.float32)), Tokens(written, weights)))
