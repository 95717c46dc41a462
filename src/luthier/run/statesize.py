"""What an optimizer will remember of each weight, before there is one: names, shapes and types of `Optimizer.state`.

A test holds every optimizer to it after a real step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.engine.config import OptimConfig
from luthier.engine.optim import SEPARATOR, majority

_BLOCK = 256
"""Numbers that share a scale in bitsandbytes' 8-bit state."""


def sketch_state(named: Mapping[str, Tensor], config: OptimConfig, *, tied: bool = False) -> dict[str, Tensor]:
    """The state tensors of trained weights, on the meta device.

    Args:
        tied: whether the embeddings are the head as well.
    """
    most = majority(named, config, tied)
    found: dict[str, Tensor] = {}
    for name, weight in named.items():
        own = config.name if name in most else _for_the_rest(config.name)
        found |= {f"{name}{SEPARATOR}{key}": value for key, value in _state(own, weight).items()}
    return found


def state_bytes(named: Mapping[str, Tensor], config: OptimConfig, *, tied: bool = False) -> int:
    """Bytes of that on the device; what is paged lies in the machine's memory."""
    if config.name.startswith("paged"):
        return 0
    return sum(value.nbytes for value in sketch_state(named, config, tied=tied).values())


def _for_the_rest(name: str) -> str:
    return {"lion_8bit": "lion_32bit", "paged_adamw": "adamw_32bit", "paged_adamw_8bit": "adamw_32bit"}.get(
        name, "adamw"
    )


def _state(name: str, weight: Tensor) -> dict[str, Tensor]:
    match name:
        case "adamw" | "adam":
            return {"step": _one(), "exp_avg": _like(weight), "exp_avg_sq": _like(weight)}
        case "sgd" | "muon":
            return {"momentum_buffer": _like(weight)}
        case "adagrad":
            return {"step": _one(), "sum": _like(weight)}
        case "adafactor":
            if weight.ndim < 2:
                return {"step": _one(), "variance": _like(weight)}
            rows, columns = (*weight.shape[:-1], 1), (*weight.shape[:-2], 1, weight.shape[-1])
            return {"step": _one(), "row_var": _empty(*rows), "col_var": _empty(*columns)}
        case "paged_adamw" | "adamw_32bit":
            return {"step": _counter(), "state1": _like(weight), "state2": _like(weight)}
        case "lion_32bit":
            return {"step": _counter(), "state1": _like(weight)}
        case _:
            numbers = ("1",) if "lion" in name else ("1", "2")
            found = {"step": _counter()}
            for number in numbers:
                found[f"state{number}"] = _empty(*weight.shape, dtype=torch.uint8)
                found[f"qmap{number}"] = _empty(256)
                found[f"absmax{number}"] = _empty(-(-weight.numel() // _BLOCK))
            return found


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _like(weight: Tensor) -> Tensor:
    return _empty(*weight.shape)


def _one() -> Tensor:
    return _empty()


def _counter() -> Tensor:
    """A number of Python's, as it is saved."""
    return _empty(dtype=torch.int64)
