"""How much of a step's activations is kept, found out by trying before anything is trained.

Keeping everything is fastest, computing it again is smallest.  Memory grows along a straight line with the tokens of a
micro-batch, so two small trial steps tell what a full one takes, and what the optimizer will add is known: the first
way of keeping that fits is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.engine.attempt import release
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh
from luthier.engine.objective import Objective
from luthier.model.layer import Keep
from luthier.model.load import Model
from luthier.run import statesize

KEEPS: tuple[Keep, ...] = ("all", "most", "some", "input")
"""Fastest first."""

KEPT: dict[Keep, str] = {
    "all": "Activations are kept",
    "most": "Activations are kept but for the cheapest",
    "some": "The widest activations are computed again",
    "input": "Activations are computed again",
}
"""What is said of each."""

_TRIAL = 8192
"""Tokens of the larger trial step; the smaller one has half of them."""

_SHARE = 0.92
"""Of the memory that is free, what a step may take by plan; the allocator leaves gaps."""

Measure = Callable[[Keep, int], int | None]
"""Peak bytes of a trial step that keeps so much, with so many tokens; None when there is no room for it."""


Trial = Callable[[int], Batch]
"""A micro-batch of about so many tokens."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What will be kept, and the peak in bytes that was predicted for it; None where nothing was tried."""

    keep: Keep
    predicted: int | None = None
    available: int | None = None


def keeps_of(model: Model) -> tuple[Keep, ...]:
    """The ways of keeping that differ for a model, fastest first."""
    return KEEPS if model.runs_by_hand else ("most", "input")


def choose(measure: Measure, capacity: int, later: int, available: int, keeps: Sequence[Keep] = KEEPS) -> Choice:
    """The first of `keeps` whose full step fits.

    Args:
        capacity: tokens of a full micro-batch.
        later: bytes that come on top of any step: optimizer state, averages.
        available: bytes that may be held at all, what is held now included.
    """
    keep, predicted = keeps[-1], None
    for keep in keeps:
        predicted = _predict(measure, keep, capacity)
        if predicted is not None and fits(predicted + later, available):
            break
    return Choice(keep, None if predicted is None else predicted + later, available)


def fits(predicted: int, available: int) -> bool:
    """Whether a step that takes so many bytes can be had, by plan."""
    return predicted <= room(available)


def room(available: int) -> int:
    """Bytes that a step may take, of those that may be held."""
    return int(_SHARE * available)


def _predict(measure: Measure, keep: Keep, capacity: int) -> int | None:
    """Peak bytes of a full step."""
    if capacity <= _TRIAL:
        return measure(keep, capacity)
    large, small = measure(keep, _TRIAL), measure(keep, _TRIAL // 2)
    if large is None or small is None:
        return None
    return large + (large - small) * (capacity - _TRIAL) // (_TRIAL - _TRIAL // 2)


def state_bytes(model: Model, optim: OptimConfig, *, average: bool) -> int:
    """What optimizer and moving average will hold beside weights and gradients."""
    trained = model.trained()
    averages = 4 * sum(weight.numel() for weight in trained.values()) if average else 0
    return statesize.state_bytes(trained, optim, tied=model.tied) + averages


def choose_on_gpu(
    model: Model,
    objective: Objective,
    mesh: Mesh,
    *,
    capacity: int,
    trials: Sequence[Trial],
    later: int,
    keeps: Sequence[Keep],
) -> Choice:
    """Try on this device; all processes then keep what the one with the least room can.

    trials: micro-batches of each kind, of which the one that takes the most counts.
    """
    device = mesh.device

    def measure(keep: Keep, tokens: int) -> int | None:
        model.train_mode(keep)
        batches = [trial(tokens).to(device) for trial in trials]
        torch.cuda.reset_peak_memory_stats(device)
        try:
            for batch in batches:
                torch.stack(list(objective.sums(model, batch).losses.values())).sum().backward()
            return torch.cuda.max_memory_allocated(device)
        except torch.OutOfMemoryError:
            return None
        finally:
            del batches
            for weight in model.trained().values():
                weight.grad = None
            release()

    free, _ = torch.cuda.mem_get_info(device)
    available = free + torch.cuda.memory_reserved(device)
    choice = choose(measure, capacity, later, available, keeps)
    torch.cuda.reset_peak_memory_stats(device)
    mine = keeps.index(choice.keep)
    agreed = next(index for index in reversed(range(len(keeps))) if mesh.any(mine == index))
    return replace(choice, keep=keeps[agreed])


def random_trial(tokens: int, longest: int, vocabulary: int) -> Batch:
    """Sequences of random tokens, as long as they may be, every token trained."""
    rng = np.random.default_rng(0)
    lengths = [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])
    groups = [
        Group((Tokens(rng.integers(0, vocabulary, length).astype(np.int32), np.ones(length, np.float32)),))
        for length in lengths
    ]
    return collate(groups, range(len(groups)))


def repeated_trial(tokens: int, like: Group) -> Batch:
    """A sample as often as fits into so many tokens, but at least once."""
    groups = [like] * max(1, tokens // len(like))
    return collate(groups, range(len(groups)), like.kind)
