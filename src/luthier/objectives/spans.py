"""T5's span corruption: the encoder reads a text with spans behind sentinels, the decoder writes what they hide.

    loss = sum_t w_t -log p(target_t | source, targets before) / sum_t w_t

Texts are kept as bare tokens, in pieces that fill the encoder's sequence once their spans are hidden; spans are drawn
from (seed, epoch, sample).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from luthier.base.records import Record, Task
from luthier.data.batch import Batch, Group, Tokens
from luthier.data.corrupt import hide_spans, noise_spans, source_length
from luthier.data.plain import Plain
from luthier.engine.objective import Terms
from luthier.model.heads import Head
from luthier.model.load import Model
from luthier.objectives.config import SpanCorruption
from luthier.objectives.masked import text_of


@dataclass(frozen=True)
class Spans:
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
    head: Head = Head("seq2seq")
    task: Task = "language"
    stop_ids: frozenset[int] = frozenset()

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
        return Group((Tokens(ids, np.full(len(ids), weight, dtype=np.float32)),), bare=True)

    def vary(self, group: Group, rng: np.random.Generator) -> Group:
        """Source and target."""
        tokens = group.sequences[0]
        spans = noise_spans(len(tokens), rng, density=self.config.density, mean_span=self.config.mean_span)
        source, target = hide_spans(tokens.ids, spans, self.sentinels, self.end)
        return source_and_target(source, target, self.start, float(tokens.weights[0]))

    def prepare(self, model: Model, step: Sequence[Batch]) -> None:
        """Nothing to do: the loss needs no reference and no baseline."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"spans": batch.weights_T.sum(dtype=torch.float64)}

    def sums(self, model: Model, batch: Batch) -> Terms:
        logprobs_T, correct_T = model.logprobs(batch)
        trained_T = batch.weights_T != 0
        accuracy = (correct_T & trained_T).sum(), trained_T.sum()
        return Terms({"spans": -(logprobs_T * batch.weights_T).sum()}, {"token_accuracy": accuracy})

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """There are no metrics but sums."""
        return {}


def source_and_target(source: Sequence[int], target: Sequence[int], start: int, weight: float) -> Group:
    """What an encoder reads, and what a decoder that begins with `start` is to write."""
    written = np.array([start, *target], dtype=np.int32)
    weights = np.full(len(written), weight, dtype=np.float32)
    weights[0] = 0
    read = np.array(source, dtype=np.int32)
    return Group((Tokens(read, np.zeros(len(read), dtype=np.float32)), Tokens(written, weights)))
