"""Models whose weights are stored in hqq's few bits: written, and opened again without ever being whole.

transformers knows no such format today, so this one is ours: the tensors that stand for a rounded weight lie in
model.safetensors under the layer's name, and config.json says how to read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from luthier.base.errors import ModelError
from luthier.model import lowbit, rounding
from luthier.model.config import Quant
from luthier.model.folder import read_json

FILE = "model.safetensors"
_OWN = "luthier"


def write(source: Path, out: Path, quant: Quant, device: torch.device) -> None:
    """Round the model in `source` and write weights and config.json into `out`.

    Raises:
        MissingExtra: hqq is not installed.
        ModelError: it gives wrong numbers here, or there is no layer it can round.
        OSError: the disk is full.
    """
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    network = load(source, dtype="auto")
    lowbit.quantize(network, quant, device, network.dtype)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied weights are stored once
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.cpu().contiguous()
    save_file(tensors, out / FILE, {"format": "pt"})
    settings = read_json(source / "config.json")
    settings["quantization_config"] = {
        "quant_method": quant.method,
        "bits": quant.bits,
        "group_size": quant.group_size,
        "written_by": _OWN,
    }
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def opens(settings: PreTrainedConfig) -> bool:
    """Whether a model was written by `write`."""
    return _how(settings) is not None


def read(
    folder: Path, settings: PreTrainedConfig, device: torch.device, dtype: torch.dtype, attention: str | None
) -> PreTrainedModel:
    """The model in `folder`, its rounded layers held as `lowbit.quantize` leaves them.

    Args:
        attention: transformers' implementation, as `model.attention.usual` gives it.

    Raises:
        MissingExtra: hqq is not installed.
        ModelError: a weight is missing or unknown.
    """
    quant = _how(settings)
    assert quant is not None
    how = rounding.rounding(quant, device)
    vars(settings).pop("quantization_config")
    with _weights_without_storage():
        network: Any = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=attention)
    with safe_open(folder / FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name in [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]:
        held = {part: tensors.pop(f"{name}.{part}") for part in ("codes", "scale", "zero")}
        network.set_submodule(name, lowbit.LowBitLinear(how, held, network.get_submodule(name), dtype))
    # A rounded layer's own tensors are in place; the rest is assigned by name.
    rest = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    done = network.load_state_dict(rest, strict=False, assign=True)
    network.tie_weights()
    empty = [name for name, value in network.state_dict().items() if value.is_meta]
    if done.unexpected_keys or empty:
        raise ModelError(
            f"weights are missing or unknown: {(*done.unexpected_keys, *empty)[0]}",
            where=str(folder),
            code="wrong_weights",
            fix="Export the model again",
        )
    return network


def _how(settings: PreTrainedConfig) -> Quant | None:
    held: Any = getattr(settings, "quantization_config", None)
    if not isinstance(held, dict) or held.get("written_by") != _OWN:
        return None
    return Quant(method="hqq", bits=int(held["bits"]), group_size=int(held["group_size"]))


@contextmanager
def _weights_without_storage() -> Generator[None]:
    """Modules made in the block have weights without storage; tables, such as rotary positions, have their numbers."""
    register = nn.Module.register_parameter

    def emptied(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        empty = None if param is None else nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, empty)

    nn.Module.register_parameter = emptied
    try:
        yield
    finally:
        nn.Module.register_parameter = register
