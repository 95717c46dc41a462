"""Adapters on the disk, in PEFT's format: found, read, written."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.base.errors import ModelError
from luthier.model.causal import Model
from luthier.model.config import ModelConfig
from luthier.model.folder import ADAPTER_SETTINGS, adapter_settings, check_weights, local_folder, model_folder
from luthier.model.inits import ADAPTER, START, rank_axis

if TYPE_CHECKING:
    from peft import PeftConfig

FILE = "adapter_model"

_KINDS = {
    "LORA", "ADALORA", "VERA", "IA3", "OFT", "BOFT", "LN_TUNING", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING",
}  # fmt: skip
"""PEFT's names of what can be opened."""
_HALVES = "luthier.trained_rank"
"""Metadata of adapters whose second half is the frozen start: the rank of the first."""


def adapter_folder(config: ModelConfig, path: str) -> Path:
    """The local folder of an adapter for a model, whose files are there and whole.  Raises ModelError."""
    folder = model_folder(config.model_copy(update={"path": path, "revision": None}))
    adapter_settings(folder)
    check_weights(folder, FILE)
    return folder


def read_adapter(folder: Path) -> tuple[PeftConfig, dict[str, Tensor], int | None]:
    """Settings, tensors, and the trained rank where the rest is a frozen start."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    if config.peft_type not in _KINDS:
        raise ModelError(
            f"adapters of type {config.peft_type} are not supported",
            where=str(folder),
            fix=f"Use one of {', '.join(sorted(_KINDS))}",
        )
    with safe_open(folder / f"{FILE}.safetensors", framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        rank = (file.metadata() or {}).get(_HALVES)
    return config, state, int(rank) if rank else None


def misfit(places: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> str | None:
    """What is wrong where the tensors of a file are not those of an adapter, by name and shape."""
    wrong = sorted(places.keys() ^ state.keys())
    wrong += [name for name in places if name in state and places[name] != state[name].shape]
    return f"the adapter does not fit: {len(wrong)} weights differ, the first is {wrong[0]}" if wrong else None


@dataclass(frozen=True)
class Part:
    """An adapter written with another head than the one it is on with."""

    modules: tuple[str, ...]
    """Modules that are saved whole."""
    task: str | None
    """PEFT's name of the task."""
    without: Sequence[str] = ()
    """Modules of the head it is on with that are left out."""
    more: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Weights of the other head, by their names in the file."""
    below: str = ""
    """What the names of the backbone's modules begin with, where the other model is the backbone alone."""

    def keeps(self, name: str) -> bool:
        """Whether a module, or a weight of one, is not left out."""
        return not any(f".{module}." in f".{name}." for module in self.without)

    def renamed(self, name: str) -> str:
        """A module's or weight's name in the other model."""
        before = "base_model.model." if name.startswith("base_model.model.") else ""
        return before + name.removeprefix(before).removeprefix(self.below)

    def fits(self, settings: dict[str, Any]) -> dict[str, Any]:
        """PEFT's settings for the other model."""
        targets = settings.get("target_modules")
        if isinstance(targets, set | list | tuple):
            targets = sorted(self.renamed(str(name)) for name in targets if self.keeps(str(name)))
        task: dict[str, Any] = {"modules_to_save": list(self.modules) or None, "task_type": self.task}
        return {**settings, **task, **({} if targets is None else {"target_modules": targets})}


def saved_modules(model: Model) -> list[str]:
    """The modules that the adapter saves whole."""
    network: Any = model.network
    return list(network.peft_config[ADAPTER].modules_to_save or ())


def save_adapter(model: Model, folder: Path, whole: Callable[[Tensor], Tensor], part: Part | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json, which fit the base model as it was loaded.

    Args:
        whole: as in `methods.save`.
        part: what is different for another head; None writes all.
    """
    from peft import PeftModel, get_peft_model_state_dict

    assert isinstance(model.network, PeftModel)
    config = model.network.peft_config[ADAPTER]
    # Gathering AdaLoRA's numbers puts its ranks into the settings.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter .* invalid shape")  # AdaLoRA may leave a layer no rank at all
        found = get_peft_model_state_dict(model.network, adapter_name=ADAPTER, save_embedding_layers=False)
    settings: dict[str, Any] = config.to_dict()
    state = {name: whole(value) for name, value in found.items()}
    if part is not None:
        state = {part.renamed(name): value for name, value in state.items() if part.keeps(name)}
        state |= {name: whole(value) for name, value in part.more.items()}
        settings = part.fits(settings)
    metadata = {"format": "pt"}
    if START in model.network.peft_config:
        start = get_peft_model_state_dict(model.network, adapter_name=START, save_embedding_layers=False)
        for name, frozen in start.items():
            state[name] = torch.cat([state[name], whole(frozen)], dim=rank_axis(name))
        metadata[_HALVES] = str(settings["r"])
        settings["lora_alpha"] *= math.sqrt(2) if settings["use_rslora"] else 2
        settings["r"] *= 2
    base = local_folder(model.config.path)
    settings |= {
        "base_model_name_or_path": str(base.resolve()) if base else model.config.path,
        "inference_mode": True,
    }
    if "init_lora_weights" in settings:
        settings["init_lora_weights"] = True
    # Tied modules share memory, which safetensors refuses.
    save_file(
        {name: value.detach().cpu().clone() for name, value in state.items()}, folder / f"{FILE}.safetensors", metadata
    )
    text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)
    (folder / ADAPTER_SETTINGS).write_text(text + "\n", encoding="utf-8")
