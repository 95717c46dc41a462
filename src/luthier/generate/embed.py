"""Texts as vectors: the hidden states of a causal language model, pooled and scaled to length 1.

Legend: T packed tokens, S texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from luthier.base.errors import DataError
from luthier.data.batch import Group, Tokens, collate
from luthier.model.causal import Model
from luthier.model.heads import pooled

Pooling = Literal["last", "mean"]

_AT_ONCE = 8192
"""Tokens that are run together; the last text may go over it."""


@torch.inference_mode()
def embed(model: Model, prompts: Sequence[Sequence[int]], pooling: Pooling) -> list[list[float]]:
    """One vector for each text: of its last token, which has seen all others, or the mean over its tokens.

    Raises:
        DataError: code `bad_prompt` when a text is empty or longer than the model holds.
    """
    for prompt in prompts:
        if not 0 < len(prompt) <= model.max_length:
            why = f"a text of {len(prompt)} tokens, the model holds 1 to {model.max_length}"
            raise DataError(why, code="bad_prompt")
    model.network.eval()
    found: list[list[float]] = []
    waiting: list[Group] = []
    for number, prompt in enumerate(prompts):
        waiting.append(Group((_tokens(prompt),)))
        if sum(map(len, waiting)) >= _AT_ONCE or number == len(prompts) - 1:
            found += _pooled(model, waiting, pooling).tolist()
            waiting = []
    return found


def _pooled(model: Model, groups: Sequence[Group], pooling: Pooling) -> Tensor:
    """vectors_SD of some texts."""
    batch = collate(groups, range(len(groups))).to(model.device)
    rows_SD = pooled(model.hidden(batch).float(), batch.lengths, batch.offsets, pooling)
    return torch.nn.functional.normalize(rows_SD, dim=-1)


def _tokens(prompt: Sequence[int]) -> Tokens:
    ids = np.array(prompt, dtype=np.int32)
    return Tokens(ids, np.zeros(len(ids), dtype=np.float32))
