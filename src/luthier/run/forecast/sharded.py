"""What each of several devices holds of a model whose weights are split over them (`model.sharding`), by arithmetic.

FSDP2 puts a layer's weights together while it computes, and the next layer's while it waits; what lies outside the
layers stays whole from the backbone to the end of the backward pass.  Gradients of a layer are whole until they have
been exchanged, for which they are copied as float32; those outside are exchanged last, when no activation is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.model.load import Model
from luthier.model.methods import layer_of


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes on one device."""

    weights: int
    gradients: int
    together: int
    """Weights and gradients that are whole while layers are computed."""
    last: int
    """Those that are whole at the end of the backward pass."""


def held_by_each(model: Model, devices: int) -> Share:
    """Of a model whose weights are all in the arithmetic's type still; those that move are held in float32."""
    layers: dict[int | None, tuple[int, int]] = {}
    part = moving = 0
    for name, weight in model.weights().items():
        trained = weight.numel() if weight.requires_grad else 0
        part += -(-weight.numel() // devices) * (4 if weight.requires_grad else weight.itemsize)
        moving += trained
        whole, moves = layers.get(layer_of(name), (0, 0))
        layers[layer_of(name)] = whole + weight.numel() * model.dtype.itemsize, moves + trained
    outside, outside_moves = layers.pop(None, (0, 0))
    widest, widest_moves = max(layers.values(), default=(0, 0))
    buffers = sum(buffer.nbytes for buffer in model.network.buffers())
    # Adapters' gradients are exchanged once a step and whole until then; see `Sharded.once`.
    once = 4 * moving <= part
    gradients = 4 * moving if once else -(-4 * moving // devices)
    if once:
        return Share(part + buffers, gradients, outside + 2 * widest, outside)
    size = model.dtype.itemsize
    whole = (widest_moves + outside_moves) * size + 4 * widest_moves
    return Share(part + buffers, gradients, outside + 2 * widest + whole, outside + outside_moves * (size + 4))
