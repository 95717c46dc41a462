"""How likely the tokens of a given text are.

Legend: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from luthier.base.errors import DataError
from luthier.data.batch import Group, collate, whole
from luthier.generate.request import Score
from luthier.model.causal import Model
from luthier.model.logprobs import chunk_rows


@torch.no_grad()
def weigh(model: Model, text: Sequence[int], likeliest: int) -> tuple[Score, ...]:
    """The log-probability of each token behind those before it; NaN for the first, before which there is nothing.

    Args:
        likeliest: how many of the likeliest tokens in each place are told besides.

    Raises:
        DataError: code `bad_prompt` when the text is empty or longer than the model holds.
    """
    if not 0 < len(text) <= model.max_length:
        why = f"a text of {len(text)} tokens, the model holds 1 to {model.max_length}"
        raise DataError(why, code="bad_prompt")
    model.eval_mode()
    batch = collate([Group((whole(np.array(text, dtype=np.int32), ()),))], [0]).to(model.device)
    hidden_TD = model.hidden(batch)[: len(text) - 1]
    targets_T = torch.tensor(text[1:], device=hidden_TD.device)
    scores = [Score(text[0], math.nan)]
    step = chunk_rows(model.vocabulary, model.device)
    for start in range(0, len(text) - 1, step):
        logprobs_TV = model.logits(hidden_TD[start : start + step]).float().log_softmax(-1)
        mine_T = targets_T[start : start + step]
        own: list[float] = logprobs_TV.gather(-1, mine_T[:, None])[:, 0].tolist()
        top = logprobs_TV.topk(likeliest, -1)
        names: list[list[int]] = top.indices.tolist()
        values: list[list[float]] = top.values.tolist()
        for place, logprob in enumerate(own):
            best = tuple(zip(names[place], values[place], strict=True))
            scores.append(Score(text[1 + start + place], logprob, best))
    return tuple(scores)
