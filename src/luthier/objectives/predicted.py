"""The loss of predicting tokens, whatever made them targets: next tokens, hidden ones, written ones.

    sum_t weight_t * -log p(target_t)

Legend: T packed tokens.
"""

from __future__ import annotations

from luthier.data.batch import Batch
from luthier.engine.objective import Terms
from luthier.model.load import Model


def token_terms(name: str, model: Model, batch: Batch) -> Terms:
    """The loss under a name, summed over the batch, and how often the target was the likeliest token."""
    logprobs_T, correct_T = model.logprobs(batch)
    trained_T = batch.weights_T != 0
    accuracy = (correct_T & trained_T).sum(), trained_T.sum()
    return Terms({name: -(logprobs_T * batch.weights_T).sum()}, {"token_accuracy": accuracy})
