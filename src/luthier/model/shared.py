"""Several heads on one backbone: one task's network keeps it, those of the others stand on it instead of their own.

    <folder>/                  the backbone alone: a model of hidden states, or an adapter without any head
    <folder>/heads/<task>/     a whole model, or a whole adapter, for each task, that plain transformers and PEFT open

The weights of a backbone lie on the disk once: the files of `heads` that hold it are other names of the same ones,
where the file system can do that.

A head that is learned (classes of sequences or of tokens) is each task's own; tasks that score the vocabulary share one
head, as the backbone was made with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from luthier.base.errors import ConfigError
from luthier.model import adapterfile, heads, methods
from luthier.model.causal import Model
from luthier.model.config import ModelConfig
from luthier.model.folder import model_folder
from luthier.model.heads import Head
from luthier.model.load import load_model

HEADS = "heads"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_shared(
    config: ModelConfig,
    device: torch.device,
    *,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Mapping[str, Head],
    open_model: Callable[[ModelConfig, Head], Model] | None = None,
) -> Model:
    """A model to train with a head for each task; with one task, `load_model`'s.

    Heads that an earlier run has learned for tasks of the same names are taken from its folder.

    Args:
        open_model: gives a model with a head, in place of `load_model`.

    Raises:
        ModelError: as `load_model` does.
        ConfigError: the tasks' models do not have a backbone in common.
    """
    sole = len({_place(task, head) for task, head in tasks.items()}) == 1
    # A model that classifies sequences has the pooler that the others' backbones lack.
    keeper = next((task for task, head in tasks.items() if head.kind == "sequence"), next(iter(tasks)))

    def load(task: str) -> Model:
        learned = model_folder(config) / HEADS / task
        place = config if sole or not learned.is_dir() else config.model_copy(update={"path": str(learned)})
        if open_model is not None:
            return open_model(place, tasks[task])
        return load_model(place, device, tokenizer=tokenizer, trained=True, head=tasks[task])

    model = load(keeper)
    if sole:
        return model
    model.config = config
    model.base.name_or_path = str(model_folder(config))
    standing = {_place(keeper, tasks[keeper]): model}
    notes = [model.note]
    for task, head in tasks.items():
        place = _place(task, head)
        if place not in standing:
            standing[place] = load(task)
            _stand(standing[place], model, task)
            notes.append(standing[place].note if head.is_new else None)
        if standing[place] is not model:
            model.others[task] = standing[place]
    model.note = ". ".join(dict.fromkeys(note for note in notes if note)) or None
    return model


def _place(task: str, head: Head) -> str:
    """What two tasks with the same head have in common."""
    return f"{head.kind} {task}" if head.is_new else head.kind


def _stand(other: Model, model: Model, task: str) -> None:
    """Put the head of `other` on the backbone of `model`; its own is given up."""
    below: Any = model.base.base_model
    own: Any = other.base.base_model
    bare = other.kind.kind == "none"
    fits = type(below) is type(own) and below is not model.base and (bare or own is not other.base)
    if not fits or model.calling.packed != other.calling.packed:
        raise ConfigError(
            f"{type(other.base).__name__} and {type(model.base).__name__} have no backbone in common",
            where=f"objective.tasks.{task}",
            fix="Let all tasks be for the same kind of model: an encoder, a decoder, or an encoder with a decoder",
        )
    if bare:
        other.base = own = below
    else:
        setattr(other.base, other.base.base_model_prefix, below)
        other.base.tie_weights()
    other.network = other.base


def save(
    model: Model, folder: Path, whole: Callable[[Tensor], Tensor] = Tensor.detach, names: tuple[str, ...] = ()
) -> None:
    """Write what plain transformers and PEFT open: as `methods.save` does, or for several `names` of tasks as above."""
    if not model.others:
        methods.save(model, folder, whole)
        for name in names:  # the same model for all of them
            (folder / HEADS / name).mkdir(parents=True)
            for file in folder.iterdir():
                if file.is_file():
                    _link(file, folder / HEADS / name / file.name)
        return
    folder.mkdir(parents=True, exist_ok=True)
    keeps = adapterfile.saved_modules(model) if model.adapted else []
    if model.adapted:
        adapterfile.save_adapter(model, folder, whole, adapterfile.Part(without=keeps, modules=(), task=None))
    else:
        _save_backbone(model, folder, whole)
    model.tokenizer.save_pretrained(folder)
    for name in names:
        view, place = model.under(name), folder / HEADS / name
        place.mkdir(parents=True)
        if model.adapted:
            _save_adapter_head(model, view, name, place, whole, keeps)
        else:
            _save_head(view, folder, place, whole)
        model.tokenizer.save_pretrained(place)


def _save_adapter_head(
    model: Model, view: Model, name: str, place: Path, whole: Callable[[Tensor], Tensor], keeps: list[str]
) -> None:
    modules = heads.modules(view.base, view.kind)
    task = heads.PEFT_TASKS[view.kind.kind]
    if name not in model.others:
        part = adapterfile.Part(modules=tuple(modules), task=task)
    else:
        without = [module for module in keeps if module not in modules or module in dict(view.base.named_children())]
        own = {f"base_model.model.{key}": value for key, value in _own(view.base).items()} if modules else {}
        below = model.base.base_model_prefix + "." if view.kind.kind == "none" else ""
        part = adapterfile.Part(without=without, modules=tuple(modules), task=task, more=own, below=below)
    adapterfile.save_adapter(model, place, whole, part)
    if view.kind.is_new:
        heads.write_labels(place, view.kind)


def _own(network: PreTrainedModel) -> dict[str, Tensor]:
    """What stands on the backbone, by name; not what is tied to it."""
    below = network.base_model
    inside = {id(weight) for weight in below.parameters()}
    found: dict[str, Tensor] = {}
    if below is network:
        return found
    for child, part in network.named_children():
        if part is not below:
            named = {**dict(part.named_parameters()), **dict(part.named_buffers())}
            found |= {f"{child}.{name}": value for name, value in named.items() if id(value) not in inside}
    return found


def _save_backbone(model: Model, folder: Path, whole: Callable[[Tensor], Tensor]) -> None:
    """Under the names that weights have below a head, which plain transformers understands with and without one."""
    below: Any = model.base.base_model
    methods.write_network(below, folder, model.dtype, whole, prefix=model.base.base_model_prefix + ".")


def _save_head(view: Model, folder: Path, place: Path, whole: Callable[[Tensor], Tensor]) -> None:
    """A whole model: its own weights, and the backbone's files under other names."""
    network = view.base
    own = _own(network)
    methods.write_network(network, place, view.dtype, whole, only=own)
    files: dict[str, str] = {}
    if (folder / _INDEX).exists():
        files = dict(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"])
    else:
        prefix = network.base_model_prefix + "."
        files = {prefix + name: _WEIGHTS for name in network.base_model.state_dict()}
    renamed = {file: f"backbone{number or ''}.safetensors" for number, file in enumerate(sorted({*files.values()}))}
    named = {name: renamed[file] for name, file in files.items()}
    written = place / _WEIGHTS
    if own:
        written.rename(place / "head.safetensors")
        named |= dict.fromkeys(own, "head.safetensors")
    else:
        written.unlink(missing_ok=True)
    for file, name in renamed.items():
        _link(folder / file, place / name)
    index: dict[str, Any] = {"metadata": {}, "weight_map": named}
    (place / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # the file system gives a file one name only
        shutil.copyfile(file, name)
