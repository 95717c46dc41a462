"""The memory of one device while a run trains or is judged, by what it is for, and how much more would fit."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from luthier.data.dataset import Prepared
from luthier.model.layer import Keep
from luthier.model.load import Model
from luthier.model.turns import moving_at_once
from luthier.objectives.setting import Whole
from luthier.run import statesize
from luthier.run.build import trials
from luthier.run.data import longest
from luthier.run.forecast import footprint, sharded
from luthier.run.forecast.hardware import Device
from luthier.run.parts import Run
from luthier.run.recompute import Trial, fits, room


@dataclass(frozen=True, slots=True)
class Demand:
    """The memory of one device at the fullest moment of a step, in bytes, for one way of keeping."""

    keep: Keep
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    """Kept from the forward pass to the backward pass."""
    working: int
    """What is computed with at that moment: logits, gradients of activations, room for products."""
    fits: bool
    whole: bool = True
    """Whether the loss was counted too."""

    @property
    def total(self) -> int:
        """The most that is held."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations + self.working

    @property
    def bare(self) -> int:
        """What is held whatever a step is like."""
        return self.weights + self.gradients + self.optimizer + self.average


def demand_of(
    run: Run, model: Model, objective: Whole, made: Sequence[Trial], tokens: int, keep: Keep, device: Device
) -> Demand:
    """The micro-batch that takes the most."""
    several = run.config.train.accumulation > 1 or run.config.train.micro_batch * run.max_length > tokens
    with _at_rest(run, model):
        steps = [
            footprint.count_step(model, objective, trial(tokens), keep, accumulates=several, gpu=device.gpu)
            for trial in made
        ]
    step = max(steps, key=lambda step: step.total)
    bare = bare_of(run, model, objective.beside)
    weights, gradients, extra = step.peak.weights, step.peak.gradients, footprint.WORKSPACE * device.gpu
    if run.split:
        weights, gradients, extra = bare.weights, bare.gradients, extra + bare.together
    kept = min(step.kept, step.peak.others)
    working = max(step.peak.others + extra, bare.last) - kept
    total = weights + gradients + bare.optimizer + bare.average + kept + working
    room = fits(total, device.available)
    return Demand(keep, weights, gradients, bare.optimizer, bare.average, kept, working, room, step.whole)


@contextmanager
def _at_rest(run: Run, model: Model) -> Generator[None]:
    """While this lasts, weights that would not move in the same step as the others have no gradient."""
    moving = moving_at_once(model, run.config.method, run.config.seed)
    resting = [weight for name, weight in model.trained().items() if name not in moving]
    try:
        for weight in resting:
            weight.requires_grad_(False)
        model.settle()
        yield
    finally:
        for weight in resting:
            weight.requires_grad_(True)
        model.settle()


@dataclass(frozen=True, slots=True)
class Bare:
    """What one device holds whatever a step is like, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    together: int = 0
    """Of weights that are split over devices: those that are whole while layers are computed."""
    last: int = 0
    """And those that are whole when nothing else is left."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average + self.together


def bare_of(run: Run, model: Model, beside: Sequence[Model] = ()) -> Bare:
    """Counted from the weights alone.

    Args:
        beside: what is held without being trained.
    """
    trained, moving = model.trained(), moving_at_once(model, run.config.method, run.config.seed)
    state = statesize.state_bytes(moving, run.config.optim, tied=model.tied)
    average = 4 * sum(w.numel() for w in trained.values()) if run.config.train.ema_decay is not None else 0
    if run.split:
        parts, world = sharded.held_by_each(model, run.mesh.world), run.mesh.world
        return Bare(
            parts.weights, parts.gradients, -(-state // world), -(-average // world), parts.together, parts.last
        )
    tensors = [weight for one in (model, *beside) for weight in footprint.weights_of(one)]
    held = {weight.untyped_storage()._cdata: weight.untyped_storage() for weight in tensors}  # pyright: ignore[reportPrivateUsage]
    gradients = sum(weight.nbytes for weight in moving.values())
    return Bare(sum(storage.nbytes() for storage in held.values()), gradients, state, average)


def evaluation_of(run: Run, model: Model, objective: Whole, data: Prepared, demand: Demand, device: Device) -> int:
    """Bytes that an evaluation holds at most."""
    config = run.config
    micro = config.eval.micro_batch or config.train.micro_batch
    tokens = min(micro * run.max_length, int(data.validation.lengths.sum()) if data.validation is not None else 0)
    most = max(
        footprint.count_evaluation(model, objective, trial(max(1, tokens)), gpu=device.gpu)
        for trial in trials(run, model, objective, data)
    )
    return most + demand.optimizer + demand.average


def largest(
    run: Run,
    model: Model,
    objective: Whole,
    data: Prepared,
    demands: Sequence[Demand],
    chosen: Keep,
    device: Device,
) -> dict[Keep, int]:
    """Full-length samples of a micro-batch: memory grows along a line; what it says is tried where that is quick."""
    unit = run.max_length if run.config.data.packing else longest(run, data)
    made = trials(run, model, objective, data)
    found: dict[Keep, int] = {}
    ways: list[Keep] = [chosen, demands[-1].keep]
    for keep in ways[: 1 + (ways[0] != ways[1])]:

        def taken(samples: int, keep: Keep = keep) -> Demand:
            return demand_of(run, model, objective, made, samples * unit, keep, device)

        least = max(1, _ENOUGH // unit)
        one = taken(least)
        if least > 1 and not one.fits:
            least, one = 1, taken(1)
        line = _Line(least, one.total, max(1, -(-(taken(2 * least).total - one.total) // least)))
        count = line.most(device) if one.fits else 0
        while model.runs_by_hand and count > least and count * unit <= _TRIED:
            tried = taken(count)
            if tried.fits:
                break
            line = _Line(least, one.total, -(-(tried.total - one.total) // (count - least)))
            count = min(count - 1, line.most(device))
        found[keep] = count
    return found


_ENOUGH = 8192
"""Tokens of a micro-batch that has all a step needs however short it is, a whole chunk of logits too."""
_TRIED = 2**17
"""Tokens of the largest micro-batch that is tried; of larger ones the line is believed."""


@dataclass(frozen=True, slots=True)
class _Line:
    """Memory by samples: so much with the least, and so much more with each further one."""

    least: int
    taken: int
    more: int

    def most(self, device: Device) -> int:
        """Samples that fit."""
        return self.least + max(0, room(device.available) - self.taken) // self.more
