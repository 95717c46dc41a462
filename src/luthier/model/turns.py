"""What a method does around each optimizer step: layers take turns, AdaLoRA takes ranks away.

Who moves in a step is a pure function of seed and step, so a resumed run goes on with the same layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from luthier.base.errors import ConfigError
from luthier.model.causal import Model
from luthier.model.method import AdaLora, Gradual, Lisa, Method
from luthier.model.methods import layer_of, num_layers
from luthier.model.ranks import Ranks

EMBEDDING = -1
"""Stands among the layers for the embedding below them."""

Moving = Callable[[int], frozenset[int]]
"""The layers that move in a step."""


def gradual(layers: int, total: int, method: Gradual) -> Moving:
    """From the top downwards, `layers_at_once` more every `unfreeze_every` steps; the embedding with the lowest.

    Without a pace all layers move from the middle of the run at the latest.
    """
    stages = math.ceil(layers / method.layers_at_once)
    every = method.unfreeze_every or max(1, total // 2 // stages)

    def moving(step: int) -> frozenset[int]:
        count = min(layers, method.layers_at_once * (1 + step // every))
        return frozenset(range(layers - count if count < layers else EMBEDDING, layers))

    return moving


def lisa(layers: int, method: Lisa, seed: int) -> Moving:
    """The embedding and `active_layers` of the layers, drawn anew every `interval` steps.

    Raises:
        ConfigError: the model has fewer layers.
    """
    if method.active_layers > layers:
        raise ConfigError(
            f"the model has {layers} layers, {method.active_layers} are to move",
            where="method.active_layers",
            fix=f"Use at most {layers}",
        )

    def moving(step: int) -> frozenset[int]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step // method.interval)
        return frozenset([EMBEDDING, *torch.randperm(layers, generator=generator)[: method.active_layers].tolist()])

    return moving


class ModelTurns:
    """All that a model's method, and the noise on its embeddings, do around a step.

    Attributes:
        ranks: AdaLoRA's, if that is the method.
    """

    def __init__(self, model: Model, moving: Moving | None, ranks: Ranks | None):
        self._model, self._moving, self.ranks = model, moving, ranks
        self._depths = [(_depth(name), weight) for name, weight in model.trained().items()]
        self._now: frozenset[int] | None = None

    def before(self, step: int) -> bool:
        """Let the layers of this step move, and no others; whether some came to rest."""
        if self._model.noise is not None:
            self._model.noise.step = step
        if self._moving is None:
            return False
        moving, before = self._moving(step), self._now
        if moving == before:
            return False
        self._now = moving
        for depth, weight in self._depths:
            weight.requires_grad_(depth is None or depth in moving)
            if not weight.requires_grad:
                weight.grad = None
        return before is None or not before <= moving

    def after(self, step: int) -> None:
        """The weights have moved; their gradients are still there."""
        if self.ranks is not None:
            self.ranks.after(step)

    def state(self) -> dict[str, Tensor]:
        """What AdaLoRA remembers; who moves needs no memory."""
        return self.ranks.state() if self.ranks is not None else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if self.ranks is not None:
            self.ranks.load(state)


def turns_of(model: Model, method: Method, *, total: int, seed: int) -> ModelTurns:
    """What a method does in a run of `total` steps; to be called when it has been applied.

    Raises:
        ConfigError: the run is too short, or the model too small.
    """
    layers = num_layers(model)
    moving: Moving | None = None
    if isinstance(method, Gradual):
        moving = gradual(layers, total, method)
    if isinstance(method, Lisa):
        moving = lisa(layers, method, seed)
    return ModelTurns(model, moving, Ranks(model, method, total) if isinstance(method, AdaLora) else None)


def moving_at_once(model: Model, method: Method, seed: int) -> dict[str, nn.Parameter]:
    """The trained weights that move together in one step: with LISA those of its first draw, else all."""
    if not isinstance(method, Lisa):
        return model.trained()
    moving = lisa(num_layers(model), method, seed)(0)
    return {name: weight for name, weight in model.trained().items() if _depth(name) in (None, *moving)}


def _depth(name: str) -> int | None:
    """The layer of a parameter; EMBEDDING for what lies below all layers, None above them."""
    layer = layer_of(name)
    return EMBEDDING if layer is None and "embed" in name else layer
