"""What each class counts in a loss: as somebody said, or the more the rarer it is.

Legend: C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from luthier.base.errors import ConfigError

WHERE = "--class_weights"


def class_weights(
    given: Sequence[str], names: Sequence[str], survey: Callable[[], tuple[Mapping[str, int], int]], *, several: bool
) -> Tensor | None:
    """weights_C, float32, or None where all classes count the same.

    `balanced` is scikit-learn's: examples / (classes * examples of the class).

    Args:
        given: `balanced`, or a number for each class.
        survey: how many examples of each class there are, and how many in all; called only where that matters.
        several: examples have several classes; `balanced` then weighs what is to be found by negatives / positives.

    Raises:
        ConfigError: neither of both, or not as many numbers as classes.
    """
    if not given:
        return None
    if tuple(given) == ("balanced",):
        counts, total = survey()
        seen = np.array([max(1, counts.get(name, 0)) for name in names], dtype=np.float64)
        return torch.tensor((total - seen) / seen if several else total / (len(names) * seen)).float()
    try:
        weights = torch.tensor([float(word) for word in given])
    except ValueError:
        raise ConfigError("expected 'balanced' or a number for each class", where=WHERE, code="bad_value") from None
    if len(weights) != len(names) or bool((weights < 0).any()):
        fix = f"The classes are {', '.join(names[:12])}"
        raise ConfigError(f"{len(names)} weights of at least 0 are needed, one for each class", where=WHERE, fix=fix)
    return weights
