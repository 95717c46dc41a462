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
        given: `balanced`, or a number for each class in order, or `name=number`, where a class not named counts 1.
        survey: how many examples of each class there are, and how many in all; called only where that matters.
        several: examples have several classes; `balanced` then weighs what is to be found by negatives / positives.

    Raises:
        ConfigError: none of these, not as many numbers as classes, or a class that is not there.
    """
    if not given:
        return None
    if tuple(given) == ("balanced",):
        counts, total = survey()
        seen = np.array([max(1, counts.get(name, 0)) for name in names], dtype=np.float64)
        return torch.tensor((total - seen) / seen if several else total / (len(names) * seen)).float()
    numbers = _by_name(given, names) if any("=" in word for word in given) else given
    try:
        weights = torch.tensor([float(word) for word in numbers])
    except ValueError:
        fix = "Give 'balanced', a number for each class in order, or name=number (a class not named counts 1)"
        raise ConfigError(f"{' '.join(given)!r} is not understood", where=WHERE, fix=fix, code="bad_value") from None
    if len(weights) != len(names) or not bool((weights >= 0).all()):
        fix = f"The classes are {', '.join(names[:12])}"
        raise ConfigError(f"{len(names)} weights of at least 0 are needed, one for each class", where=WHERE, fix=fix)
    return weights


def _by_name(given: Sequence[str], names: Sequence[str]) -> list[str]:
    """The number of each class, from `name=number`."""
    told: dict[str, str] = {}
    for word in given:
        name, _, number = word.rpartition("=")
        if name not in names:
            fix = f"The classes are {', '.join(names[:12])}"
            raise ConfigError(f"there is no class {name!r}", where=WHERE, fix=fix, code="bad_value")
        told[name] = number
    return [told.get(name, "1") for name in names]
