"""How well a model predicts text, in bits per byte: comparable between models whatever their tokenizers.

    bits per byte = sum_t -log2 p(token_t | tokens before it in the document) / bytes of the text (UTF-8)

The sum is the length of a real code of the whole text.  A document's first token has nothing before it; where the
tokenizer puts no beginning-of-sequence token there, it costs log2(vocabulary) bits.  The end-of-sequence token is not
part of the text and costs nothing.  A document longer than the model's context is read in windows that overlap by
half, and every token is judged once, in the first window that holds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.base.records import Text, Where
from luthier.data.batch import Group, Tokens, collate
from luthier.data.render import Renderer
from luthier.model.causal import Model

_NOWHERE = Where("", 0)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a text costs.  Two of them add up to the likelihood of both texts."""

    bits: float
    tokens: int
    size: int
    """Bytes (UTF-8)."""

    @property
    def nats(self) -> float:
        """The same in natural units: minus the log-probability."""
        return self.bits * math.log(2)

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(self.bits + other.bits, self.tokens + other.tokens, self.size + other.size)


@torch.no_grad()
def likelihood(model: Model, renderer: Renderer, texts: Sequence[str], *, batch_tokens: int = 8192) -> Likelihood:
    """The likelihood of some documents, each on its own.

    Args:
        batch_tokens: tokens computed at once, or one window if that is longer.
    """
    model.eval_mode()
    nats, tokens, unseen = 0.0, 0, 0
    windows: list[Tokens] = []
    for text in texts:
        ids, known = _ids(renderer, text)
        tokens += len(ids) - known
        unseen += len(ids) > 0 and not known
        windows += _windows(ids, model.max_length)
    for batch in _batches(windows, batch_tokens):
        placed = collate([Group((window,)) for window in batch], range(len(batch))).to(model.device)
        logprobs_T, _ = model.logprobs(placed)
        nats -= float(logprobs_T.sum(dtype=torch.float64))
    size = sum(len(text.encode()) for text in texts)
    return Likelihood(nats / math.log(2) + unseen * math.log2(model.vocabulary), tokens, size)


def _ids(renderer: Renderer, text: str) -> tuple[NDArray[np.int32], int]:
    """Token ids of a document without its end, and how many stand there that are not text."""
    ids = renderer.text(Text(text, _NOWHERE)).ids[:-1]
    bos = renderer.tokenizer.bos_token_id
    return ids, int(len(ids) > 0 and bos is not None and int(ids[0]) == bos)


def _windows(ids: NDArray[np.int32], longest: int) -> Iterator[Tokens]:
    """The document cut so that each token but the first is judged once, behind at least half a window if it can be."""
    step = max(1, longest // 2)
    judged = 1
    for start in range(0, max(1, len(ids) - longest + step), step):
        window = ids[start : start + longest]
        weights = (np.arange(start, start + len(window)) >= judged).astype(np.float32)
        judged = start + len(window)
        if weights.any():
            yield Tokens(window, weights)


def _batches(windows: Sequence[Tokens], most: int) -> Iterator[list[Tokens]]:
    """Windows in order, as many at once as `most` tokens hold."""
    batch: list[Tokens] = []
    for window in windows:
        if batch and sum(map(len, batch)) + len(window) > most:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
