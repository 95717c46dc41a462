"""Texts as vectors: hidden states, pooled and scaled to length 1.

Legend: S texts, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.base.errors import DataError
from luthier.data.batch import Batch, Group, whole
from luthier.generate.passes import AT_ONCE, each
from luthier.model.causal import Model
from luthier.model.heads import Pooling, pooled


def embed(
    model: Model, texts: Sequence[Sequence[int]], pooling: Pooling, at_once: int = AT_ONCE
) -> NDArray[np.float32]:
    """vectors_SD of texts given as token ids; without texts [0, 0].

    Args:
        pooling: the first token, the last, which in a causal model has seen all others, or the mean of all.
        at_once: most tokens of a batch.

    Raises:
        DataError: code `bad_prompt` when a text is empty or longer than the model holds.
    """
    for text in texts:
        if not 0 < len(text) <= model.max_length:
            why = f"a text of {len(text)} tokens, the model holds 1 to {model.max_length}"
            raise DataError(why, code="bad_prompt")
    groups = [Group((whole(np.array(text, dtype=np.int32), ()),)) for text in texts]

    def run(batch: Batch) -> Iterator[NDArray[np.float32]]:
        rows_SD = pooled(model.hidden(batch).float(), batch.lengths, batch.offsets, pooling)
        return iter(torch.nn.functional.normalize(rows_SD, dim=-1).cpu().numpy())

    vectors = each(model, groups, run, at_once)
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
