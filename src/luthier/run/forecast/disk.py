"""The files of a checkpoint and their sizes, before there is one; of a model with numbers or without."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from luthier.engine.checkpoint import EMA, OPTIMIZER, TRAINED
from luthier.model import shadow
from luthier.model.load import Model
from luthier.model.tensorfile import file_size
from luthier.model.turns import moving_at_once
from luthier.run import statesize
from luthier.run.config import RunConfig

ARTEFACT = "model.safetensors"
ADAPTER = "adapter_model.safetensors"


def checkpoint_files(model: Model, config: RunConfig) -> dict[str, int]:
    """Bytes of the files with tensors.  Tokenizer, settings and state are a few MiB beside them.

    model: without numbers, if it has adapters.
    """
    return {**(_adapter(model) if model.adapted else _whole(model)), **_exact(model, config)}


def least_bytes(model: Model, config: RunConfig) -> int:
    """What a checkpoint of a model with numbers takes at least: all its tensors but the adapters that people use.

    What PEFT does to find those can change a live model.
    """
    files = _exact(model, config) | ({} if model.adapted else _whole(model))
    return sum(files.values())


def _exact(model: Model, config: RunConfig) -> dict[str, int]:
    """What a run goes on with."""
    trained = model.trained().items()
    wide = {name: torch.empty(weight.shape, dtype=torch.float32, device="meta") for name, weight in trained}
    moving = moving_at_once(model, config.method, config.seed)
    found = {
        TRAINED: file_size(wide),
        OPTIMIZER: file_size(
            statesize.sketch_state({name: wide[name] for name in moving}, config.optim, tied=model.tied)
        ),
    }
    return found | ({EMA: file_size(wide)} if config.train.ema_decay is not None else {})


def _adapter(model: Model) -> dict[str, int]:
    """Adapters as people use them."""
    from peft import get_peft_model_state_dict

    network: Any = model.network
    # PEFT brings what stands before the text to the CPU, which tensors without numbers only pretend to.
    with nullcontext() if model.before is None else shadow.on_cpu(model):
        state = get_peft_model_state_dict(network, save_embedding_layers=False)
        return {ADAPTER: file_size(state, {"format": "pt"})}


def _whole(model: Model) -> dict[str, int]:
    """The whole model as people use it: in the arithmetic's type, tied weights once."""
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, value in model.base.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            kind = model.dtype if value.is_floating_point() else value.dtype
            state[name] = torch.empty(value.shape, dtype=kind, device="meta")
    return {ARTEFACT: file_size(state, {"format": "pt"})}
