"""Adapters merged into their base tensor by tensor, so that memory holds the adapters and one weight, never the model.

The layers exist without storage.  One after the other gets its weight from the file in float32, PEFT merges the
adapter into it as it would into a live model, the result is written in the type asked for, and the layer is emptied
again.  Shards, names and order of the base's files stay as they are.

Legend: of tensors, whatever axes the file gives them.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.base.errors import ModelError
from luthier.model.adapterfile import FILE, misfit
from luthier.model.folder import read_json
from luthier.model.inits import ADAPTER, lora_layers
from luthier.model.load import quiet
from luthier.model.tensorfile import write_tensors

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

INDEX = "model.safetensors.index.json"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
"""What lies beside weights and goes wherever they go."""
_COPIED = ("generation_config.json", *LICENCES)


class Unstreamable(Exception):
    """Why a model or an adapter cannot be merged tensor by tensor; the live model can always be merged."""


@dataclass(slots=True)
class Merged:
    """What was done, counted while it was done."""

    changed: int = 0
    """Tensors that are not the base's."""
    lost: float = 0.0
    change: float = 0.0
    """Sums of squares: what rounding to the written type took from the change, and the change itself."""

    @property
    def rounding(self) -> float:
        """The share of the adapters' change that the written type cannot hold; 0 in float32."""
        return (self.lost / self.change) ** 0.5 if self.change else 0.0


@dataclass(frozen=True, slots=True)
class _Adapter:
    """An adapter on layers without storage: what it adds to weights, and which it replaces, by name in the files."""

    layers: dict[str, LoraLayer]
    replaced: dict[str, Tensor]


def merge_files(base: Path, adapters: Sequence[Path], out: Path, dtype: torch.dtype | None) -> Merged:
    """Write config.json and weights of `base` with `adapters` merged into them, in order.

    Args:
        base: a model folder whose files have been checked.
        out: an existing folder.
        dtype: type of the written weights; None keeps each weight's own.

    Raises:
        Unstreamable: the names in the files are not those of the layers, or an adapter is of another kind.
        ModelError: an adapter does not fit the base, or the merged weights are not finite.
        OSError: the disk is full.
    """
    settings = AutoConfig.from_pretrained(base)
    if getattr(settings, "quantization_config", None) is not None:
        raise Unstreamable("the base is stored in few bits")
    shards = _shards(base)
    shapes = {name: shape for held in shards.values() for name, shape in held.items()}
    put_on = [_adapter(_empty(settings), folder, shapes) for folder in adapters]
    merged = Merged()
    for shard, held in shards.items():
        with safe_open(base / shard, framework="pt") as file:
            _write_shard(out / shard, file, list(held), put_on, dtype, merged)
    if len(shards) > 1:
        _write_index(base, out, dtype)
    raw = read_json(base / "config.json")
    if dtype is not None:
        raw.pop("torch_dtype", None)
        raw["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    for name in _COPIED:
        if (base / name).exists():
            shutil.copyfile(base / name, out / name)
    return merged


def _shards(base: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors in each weight file, in the files' order."""
    index = base / INDEX
    names = ["model.safetensors"]
    if index.exists():
        names = sorted({str(shard) for shard in read_json(index)["weight_map"].values()})
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in names:
        with safe_open(base / name, framework="pt") as file:
            found[name] = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return found


def _empty(settings: Any) -> PreTrainedModel:
    with torch.device("meta"), quiet():
        return AutoModelForCausalLM.from_config(settings)


def _adapter(network: PreTrainedModel, folder: Path, shapes: dict[str, tuple[int, ...]]) -> _Adapter:
    """The adapter in `folder` on `network`, once every one of its tensors is known to have its place in the files."""
    from peft import LoraConfig, PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(folder))
    if type(config) is not LoraConfig or config.bias != "none" or config.lora_bias:
        raise Unstreamable(f"adapters of type {config.peft_type} are merged in the live model")
    embedding: Any = network.get_input_embeddings()
    head: Any = network.get_output_embeddings()
    tied = head is not None and (
        head.weight is embedding.weight or network.config.get_text_config().tie_word_embeddings
    )
    with safe_open(folder / f"{FILE}.safetensors", framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    own = {name for name in state if ".lora_" not in name}
    replaced = {name.removeprefix("base_model.model."): state[name] for name in own}
    with warnings.catch_warnings():
        # PEFT asks transformers for an attribute under a name that has since changed, and speaks of tied weights.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", ".*tie", UserWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
        config.inference_mode, config.modules_to_save, config.lora_dropout = True, None, 0.0
        config.base_model_name_or_path = network.name_or_path  # PEFT compares them
        wrapped = get_peft_model(network, config, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    rest = {_live_name(name): value for name, value in state.items() if name not in own}
    places = {name: value.shape for name, value in wrapped.state_dict().items() if ".lora_" in name}
    if what := misfit(places, rest):
        raise ModelError(what, where=str(folder), code="adapter_differs", fix="Use the model it was trained on")
    wrapped.load_state_dict(rest, strict=False, assign=True)
    layers = {f"{name.removeprefix('base_model.model.')}.weight": layer for name, layer in lora_layers(wrapped)}
    vocabulary = [name for name in (*layers, *replaced) if "embed" in name or "lm_head" in name]
    if tied and vocabulary:
        raise Unstreamable(f"it changes {vocabulary[0]}, and this model has one matrix for both ends")
    lost = [name for name in (*layers, *replaced) if name not in shapes]
    lost += [name for name, value in replaced.items() if name in shapes and shapes[name] != tuple(value.shape)]
    if lost:
        raise Unstreamable(f"the base's files have no weight {lost[0]}")
    return _Adapter(layers, replaced)


def _live_name(name: str) -> str:
    """Where PEFT keeps a saved tensor: its file leaves the adapter's name out."""
    stem, _, last = name.rpartition(".")
    if last == "weight":
        return f"{stem}.{ADAPTER}.weight"
    return f"{name}.{ADAPTER}.weight" if last == "lora_magnitude_vector" else f"{name}.{ADAPTER}"


def _write_shard(
    path: Path, file: Any, names: Sequence[str], adapters: Sequence[_Adapter], dtype: torch.dtype | None, merged: Merged
) -> None:
    """One weight file; each tensor is read, changed and written before the next."""
    places: dict[str, Tensor] = {}
    for name in names:
        stored = file.get_slice(name)
        own = getattr(torch, _TORCH[stored.get_dtype()])
        kind = dtype if dtype is not None and own.is_floating_point else own
        places[name] = torch.empty(stored.get_shape(), dtype=kind, device="meta")
    known = {id(place): name for name, place in places.items()}

    def whole(place: Tensor) -> Tensor:
        name = known[id(place)]
        return _changed(name, file.get_tensor(name), adapters, place.dtype, merged)

    write_tensors(path, places, whole)


_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def _changed(name: str, weight: Tensor, adapters: Sequence[_Adapter], dtype: torch.dtype, merged: Merged) -> Tensor:
    """The weight with what the adapters do to it, computed in float32."""
    if not any(name in adapter.layers or name in adapter.replaced for adapter in adapters):
        return weight.to(dtype)
    before = weight.float()
    exact = before
    for adapter in adapters:
        if name in adapter.replaced:
            exact = adapter.replaced[name].float()
        if name in adapter.layers:
            exact = _merged(name, exact, adapter.layers[name])
    written = exact.to(dtype)
    merged.changed += 1
    merged.change += float(torch.linalg.vector_norm(exact - before)) ** 2
    merged.lost += float(torch.linalg.vector_norm(exact - written)) ** 2
    return written


def _merged(name: str, weight: Tensor, layer: LoraLayer) -> Tensor:
    """The weight after PEFT's own merge."""
    base: Any = layer.get_base_layer()
    base.weight = nn.Parameter(weight, requires_grad=False)  # safe_merge works on a copy
    merge: Callable[..., None] = layer.merge  # pyright: ignore[reportAssignmentType]
    try:
        merge(safe_merge=True)
    except ValueError as error:  # it looks at the result, and says so when it is not finite
        raise ModelError(
            f"merged, {name} is not finite", code="not_finite", fix="The adapter is broken; use an earlier checkpoint"
        ) from error
    result = base.weight.data
    base.weight = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
    layer.merged_adapters.clear()
    return result


def _write_index(base: Path, out: Path, dtype: torch.dtype | None) -> None:
    index = read_json(base / INDEX)
    if dtype is not None:
        index["metadata"] = {"total_size": sum(path.stat().st_size for path in out.glob("*.safetensors"))}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
