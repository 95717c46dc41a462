"""Sequences run through a model once, many at a time; what comes of each does not depend on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from luthier.data.batch import Batch, Group, collate
from luthier.data.pack import micro_batches
from luthier.model.causal import Model

R = TypeVar("R")

AT_ONCE = 8192
"""Tokens that are run together, unless told otherwise; a longer sequence goes alone."""


@torch.no_grad()
def each(
    model: Model, groups: Sequence[Group], run: Callable[[Batch], Sequence[R] | Iterator[R]], at_once: int = AT_ONCE
) -> list[R]:
    """What `run` makes of each group, one sequence each, in order.

    Args:
        run: from a batch to one value for each of its groups.
        at_once: most tokens of a batch, padding included where the model needs it.
    """
    model.eval_mode()
    found: dict[int, R] = {}
    for members in micro_batches([len(group) for group in groups], at_once, 1, padded=not model.packed):
        if members:
            batch = collate([groups[member] for member in members], members).to(model.device)
            found.update(zip(members, run(batch), strict=True))
    return [found[number] for number in range(len(groups))]


def rows(values: Tensor) -> Iterator[Tensor]:
    """The rows of a tensor, on the CPU."""
    return iter(values.cpu())
