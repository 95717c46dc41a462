"""Which weights move: decide it, hold each weight in the right type, and write what was learned."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.base.errors import ConfigError
from luthier.model import adapterfile, heads, lowbit
from luthier.model import adapters as lora
from luthier.model.adapters import is_lora_b, load_adapter
from luthier.model.causal import Model
from luthier.model.config import Freeze, Method, ModelConfig
from luthier.model.folder import check_weights, model_folder
from luthier.model.load import quiet
from luthier.model.method import Adapting, BitFit, WholeWeights
from luthier.model.sharding import held

__all__ = ["apply", "attach", "check_files", "is_lora_b", "layer_of", "load_adapter", "merge", "num_layers", "save"]

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def check_files(config: ModelConfig) -> None:
    """Look at the weight files of a model and its adapters before anything that takes long.

    Raises:
        ModelError: one is missing, damaged or pickled.
    """
    check_weights(model_folder(config))
    for adapter in config.adapters:
        adapterfile.adapter_folder(config, adapter)


def apply(model: Model, method: Method, adapters: Sequence[str] = (), *, widen: bool = True) -> None:
    """Make the weights that `method` names trainable, in place.

    Weights that move become float32, the others are held in the arithmetic's type or in the few bits they have.
    Earlier adapters are merged in order; with a method of PEFT's the last one is trained further.

    Args:
        widen: off where `sharding.shard` follows, which widens layer by layer what each process keeps.

    Raises:
        ConfigError: the method leaves nothing to train, or does not fit the earlier adapter.
        ModelError: an adapter cannot be read, or no layer has the target's name.
    """
    rounded = lowbit.holds(model.base)
    if isinstance(method, Adapting):
        further = adapters[-1] if adapters and method.supports.continues else None
        if not rounded:
            _merge_all(model, adapters[:-1] if further else adapters)
        _hold_frozen(model)
        lora.put_on(model, method, further)
        for name, weight in model.weights().items():
            if name.startswith("heads.") and name in _new_heads(model):
                weight.requires_grad_(True)
        if rounded:
            lora.stack(model, adapters[:-1])
    elif rounded:
        raise ConfigError(
            "weights in few bits cannot move", where="method.type", fix="Use lora, or leave --quant_bits out"
        )
    else:
        if adapters:
            _widen(model)
        _merge_all(model, adapters)
        chosen = _chosen(model, method)
        for name, weight in model.weights().items():
            weight.requires_grad_(name in chosen)
        _hold_frozen(model)
    model.settle()
    for weight in model.trained().values() if widen else ():
        weight.data = weight.data.float()
    model.eval_mode()


def attach(model: Model, adapters: Sequence[str]) -> None:
    """Put saved adapters on a model that is used, not trained: all but the last are merged, the last stays live.

    Over a base in few bits all stay live.
    """
    rounded = lowbit.holds(model.base)
    if not rounded:
        _merge_all(model, adapters[:-1])
    if adapters:
        load_adapter(model, adapters[-1])
    if rounded:
        lora.stack(model, adapters[:-1])
        model.network.requires_grad_(False).eval()


def save(model: Model, folder: Path, whole: Callable[[Tensor], Tensor] = Tensor.detach) -> None:
    """Write what plain transformers (and PEFT) open: adapters, or the whole model; tokenizer and chat template.

    Whole models are written in the arithmetic's type.

    Args:
        whole: gives the numbers to write for a weight, which may be spread over several processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model.adapted:
        adapterfile.save_adapter(model, folder, whole)
        if model.kind.is_new:
            heads.write_labels(folder, model.kind)
    else:
        write_network(model.base, folder, model.dtype, whole)
    model.tokenizer.save_pretrained(folder)


def merge(model: Model, folder: Path) -> str | None:
    """Merge the adapters in float32 and write the whole model in the arithmetic's type.  The live model stays merged.

    Returns:
        What to tell the user about the numbers, if there is something.
    """
    rounded = lowbit.holds(model.base)
    if model.adapted:
        lora.fold_in(model)
    if rounded:
        lowbit.write_out(model.base, model.dtype)
    save(model, folder)
    if not rounded:
        return None
    return (
        f"The base was held in few bits: the merged model has its rounded weights, in "
        f"{str(model.dtype).removeprefix('torch.')}. It answers as the live one did up to the rounding of that type; "
        "the adapter merged into the original weights would answer a little differently"
    )


def layer_of(name: str) -> int | None:
    """The layer (0 at the bottom) that a parameter belongs to; None outside the layers."""
    found = _LAYER.search(f".{name}")
    return int(found.group(1)) if found else None


def num_layers(model: Model) -> int:
    """How many layers the model has."""
    return int(model.base.config.get_text_config().num_hidden_layers)


def _chosen(model: Model, method: WholeWeights) -> set[str]:
    names = list(model.weights())
    if isinstance(method, BitFit):
        biases = {name for name in names if name.endswith("bias")}
        if not biases:
            raise ConfigError(
                f"a {type(model.base).__name__} has no biases to train",
                where="--train_type bitfit",
                fix="Use --train_type ln_tuning, which is as small",
            )
        return biases | _new_heads(model)
    if not isinstance(method, Freeze):
        return set(names)
    layers = num_layers(model)
    last = max(method.last_layers, math.ceil(method.ratio * layers))
    chosen: set[str] = set()
    for name in names:
        layer = layer_of(name)
        in_range = layer is not None and (layer < method.first_layers or layer >= layers - last)
        if in_range or (method.pattern and re.search(method.pattern, name)):
            chosen.add(name)
    if not chosen:
        raise ConfigError(
            f"no parameter matches {method.pattern!r}", where="method.pattern", fix=f"Names look like {names[-1]}"
        )
    return chosen | _new_heads(model)


def _new_heads(model: Model) -> set[str]:
    """The weights of heads that are learned whatever else moves: drawn at random, they would mean nothing."""
    learned = tuple(f".{module}." for module in heads.modules(model.base, model.kind))
    tasks = tuple(f"heads.{task}." for task, other in model.others.items() if other.kind.is_new)
    return {
        name
        for name in model.weights()
        if name.startswith(tasks) or (not name.startswith("heads.") and any(part in f".{name}" for part in learned))
    }


def _merge_all(model: Model, adapters: Sequence[str]) -> None:
    for adapter in adapters:
        load_adapter(model, adapter)
        lora.fold_in(model)


def _widen(model: Model) -> None:
    for weight in model.weights().values():
        weight.data = weight.data.float()


def _hold_frozen(model: Model) -> None:
    for weight in model.weights().values():
        if not weight.requires_grad:
            weight.data = weight.data.to(model.dtype)


def write_network(
    network: PreTrainedModel,
    folder: Path,
    dtype: torch.dtype,
    whole: Callable[[Tensor], Tensor] = Tensor.detach,
    *,
    prefix: str = "",
    only: Container[str] | None = None,
) -> None:
    """Write a model of transformers, in the arithmetic's type.

    Args:
        whole: as in `save`.
        prefix: put before every weight's name.
        only: names of the weights that are written; None writes all.
    """
    state: dict[str, Tensor] = {}
    written: dict[int, Tensor] = {}
    for name, value in network.state_dict().items():
        if only is not None and name not in only:
            continue
        # Tied weights are one in memory, and must be one in the file.
        place = held(value).data_ptr()
        if place not in written:
            written[place] = whole(value).to("cpu", dtype) if value.is_floating_point() else value
        state[prefix + name] = written[place]
    # A base model's own settings may name a temperature and yet not sample, which transformers refuses to save.
    try:
        if network.can_generate():
            network.generation_config.validate(strict=True)
    except ValueError:
        network.generation_config.do_sample = True
    with quiet():
        network.save_pretrained(folder, state_dict=state)
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
