"""Adapters through PEFT: put on, continued, read, written, merged."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.base.errors import ConfigError, ModelError
from luthier.model import heads, lowbit
from luthier.model.causal import Model
from luthier.model.config import Lora, ModelConfig
from luthier.model.folder import (
    ADAPTER_SETTINGS,
    adapter_settings,
    check_weights,
    first_line,
    local_folder,
    model_folder,
)
from luthier.model.inits import ADAPTER, START, add_start, half, lora_layers, rank_axis, start_inside
from luthier.model.method import Adapting, Boft, Oft, Prompting
from luthier.model.prompts import Before, begin
from luthier.model.tuners import peft_settings

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

FILE = "adapter_model"

# PEFT imports it, and it then speaks of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_KINDS = {
    "LORA", "ADALORA", "VERA", "IA3", "OFT", "BOFT", "LN_TUNING", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING",
}  # fmt: skip
"""PEFT's names of what can be opened."""
_EARLIER = "earlier"
"""Begins the names of adapters that lie under the one that is on."""
_HALVES = "luthier.trained_rank"
"""Metadata of adapters whose second half is the frozen start: the rank of the first."""


def is_lora_b(name: str) -> bool:
    """Whether a parameter is a B matrix, which LoRA+ trains at a higher rate."""
    return ".lora_B." in name or ".lora_embedding_B." in name


def put_on(model: Model, method: Adapting, earlier: str | None) -> None:
    """Wrap the model in new adapters, or in those of `earlier` to train them further.

    Raises:
        ModelError: no layer has the target's name.
        ConfigError: PEFT does not do what was asked for, or `earlier` was made with other settings; the message tells
            the differences.
    """
    if isinstance(method, Prompting) and model.kind.kind != "causal":
        raise ConfigError(
            "virtual tokens are put before causal language models only",
            where=f"--train_type {method.type}",
            fix="Use --train_type lora or ia3",
        )
    network = _wrapped(model, peft_settings(model, method))
    if isinstance(method, Oft | Boft):
        _as_asked(network, method)
    if isinstance(method, Prompting):
        begin(model, method)
    inside = method if isinstance(method, Lora) and method.init in ("pissa", "olora") else None
    if earlier is None:
        if inside is not None:
            start_inside(network, inside)
        return
    folder = adapter_folder(model.config, earlier)
    config, state, trained_rank = _read(folder)
    learned = heads.modules(model.base, model.kind)
    _check_fit(folder, method, learned, network.peft_config[ADAPTER], config, trained_rank)
    if inside is not None:
        add_start(network, inside)
        _fill(network, {name: half(name, value, trained_rank, second=True) for name, value in state.items()}, START)
        state = {name: half(name, value, trained_rank, second=False) for name, value in state.items()}
    _fill(network, state, ADAPTER)


def load_adapter(model: Model, folder: str) -> None:
    """Wrap the model in a saved adapter, to be used and not trained.

    Raises:
        ModelError: it is no adapter in safetensors, or does not fit the model.
    """
    config, state, _ = _read(adapter_folder(model.config, folder))
    config.base_model_name_or_path = model.base.name_or_path  # PEFT compares them
    network = _wrapped(model, config)
    _fill(network, state, ADAPTER)
    network.requires_grad_(False).eval()


def stack(model: Model, folders: Sequence[str]) -> None:
    """Lay saved adapters, which stay as they are, under the one that is on.

    Merging them would round them away: a base in few bits takes no small change.

    Raises:
        ConfigError: their sum is not what training them one after the other was.
    """
    from peft import LoraConfig, PeftModel

    if not folders:
        return
    network = model.network
    assert isinstance(network, PeftModel)
    live = network.peft_config[ADAPTER]
    if not isinstance(live, LoraConfig):
        raise ConfigError(
            "only LoRA adapters can be stacked over a base in few bits",
            where="--adapters",
            fix="Merge the earlier ones into the original base first",
        )
    for number, named in enumerate(folders):
        folder = adapter_folder(model.config, named)
        config, state, _ = _read(folder)
        if not isinstance(config, LoraConfig):
            raise ConfigError(
                "only LoRA adapters can be stacked over a base in few bits",
                where=str(folder),
                fix="Give it as the last adapter",
            )
        if config.modules_to_save or (config.use_dora and number) or live.use_dora:
            raise ConfigError(
                "adapters with whole modules or with DoRA cannot be stacked over a base in few bits",
                where=str(folder),
                fix="Merge them into the original base first",
            )
        network.add_adapter(f"{_EARLIER}{number}", replace(config, lora_dropout=0.0))
        _fill(network, state, f"{_EARLIER}{number}")
    # In the order of their training: DoRA scales what lies below it.
    order = sorted(network.peft_config, key=lambda name: not name.startswith(_EARLIER))
    for _, layer in lora_layers(network):
        layer.set_adapter(order)
    for name, weight in network.named_parameters():
        if f".{_EARLIER}" in name or f".{START}." in name:
            weight.requires_grad_(False)


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


def fold_in(model: Model) -> None:
    """Merge the adapters into the base in float32 and take them off; each weight keeps its type.

    Weights in few bits come out in the arithmetic's type.

    Raises:
        ConfigError: the adapters are no part of any weight.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert isinstance(model.network, PeftModel)
    if model.before is not None:
        raise ConfigError(
            "what prompt, prefix and P-tuning learned stands before the text and cannot become part of the weights",
            where="--adapters",
            code="cannot_merge",
            fix="Use it as an adapter, beside the base",
        )
    for layer in [module for module in model.network.modules() if isinstance(module, BaseTunerLayer)]:
        base: Any = layer.get_base_layer()
        dtype = base.weight.dtype
        if isinstance(base, lowbit.LowBitLinear):
            layer.base_layer = base = lowbit.written_out(base, torch.float32)
        base.weight.data = base.weight.data.float()
        layer.merge(safe_merge=True)  # pyright: ignore[reportCallIssue]
        merged: Any = layer.get_base_layer()
        merged.weight.data = merged.weight.data.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(All|Already following) adapters", UserWarning)
        model.base = model.network = model.network.merge_and_unload()
    model.base.requires_grad_(False)


def _wrapped(model: Model, config: PeftConfig) -> PeftModel:
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():
            # PEFT asks transformers for an attribute under a name that has since changed.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            # Its opinions of norms that it tunes all the same, and of its own defaults for butterflies.
            ours = "Unsupported layer type|Setting boft_n_butterfly_factor|Failed to load the CUDA extension"
            warnings.filterwarnings("ignore", ours, UserWarning)
            model.network = network = get_peft_model(model.base, config, adapter_name=ADAPTER)
    except ValueError as error:
        leaves = {name.rpartition(".")[2] for name, layer in model.base.named_modules() if isinstance(layer, nn.Linear)}
        raise ModelError(
            f"the adapters cannot be put on ({first_line(error)})",
            where="method.target",
            fix=f"Linear layers of this model: {', '.join(sorted(leaves))}",
        ) from error
    if config.is_prompt_learning:
        model.before = Before(network)
    return network


def _as_asked(network: PeftModel, method: Oft | Boft) -> None:
    """Raises ConfigError where PEFT has taken other blocks or factors than were asked for, which it does by itself."""
    from peft.tuners.boft.layer import BOFTLayer
    from peft.tuners.oft.layer import OFTLayer

    for layer in network.modules():
        if isinstance(layer, OFTLayer) and (size := layer.oft_block_size[ADAPTER]) != method.block_size:
            raise ConfigError(
                f"a layer has {layer.in_features} inputs, no multiple of {method.block_size}",
                where="--oft_block_size",
                fix=f"Take a divisor of all layers' inputs, here for example {size}",
            )
        if isinstance(layer, BOFTLayer) and isinstance(method, Boft) and len(layer.boft_R[ADAPTER]) != method.factors:
            raise ConfigError(
                "PEFT multiplies several butterfly factors by a CUDA extension of its own, which is not here",
                where="--boft_n_butterfly_factor",
                fix="Set it to 1, or install ninja and a CUDA compiler on a machine with an NVIDIA GPU",
            )


def adapter_folder(config: ModelConfig, path: str) -> Path:
    """The local folder of an adapter for a model, whose files are there and whole.  Raises ModelError."""
    folder = model_folder(config.model_copy(update={"path": path, "revision": None}))
    adapter_settings(folder)
    check_weights(folder, FILE)
    return folder


def _read(folder: Path) -> tuple[PeftConfig, dict[str, Tensor], int | None]:
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


_MATTER = ("r", "vera_dropout", "oft_block_size", "boft_block_size", "boft_n_butterfly_factor", "num_virtual_tokens")
"""PEFT's settings that an earlier adapter must share with the one asked for, where both have them."""


def _check_fit(
    folder: Path,
    method: Adapting,
    learned: Sequence[str],
    asked: PeftConfig,
    config: PeftConfig,
    trained_rank: int | None,
) -> None:
    asked_and_found: dict[str, tuple[Any, Any]]
    if isinstance(method, Lora) and config.peft_type == "LORA":
        found: Any = config
        shrink = 1.0 if trained_rank is None else 1 / math.sqrt(2) if found.use_rslora else 0.5
        asked_and_found = {
            "rank": (method.rank, trained_rank or found.r),
            "alpha": (method.alpha, found.lora_alpha * shrink),
            "rslora": (method.rslora, found.use_rslora),
            "dora": (method.dora, found.use_dora),
            "init from the weight": (method.init in ("pissa", "olora"), trained_rank is not None),
            "modules_to_save": (sorted({*method.modules_to_save, *learned}), sorted(found.modules_to_save or ())),
        }
    else:
        both: tuple[dict[str, Any], dict[str, Any]] = asked.to_dict(), config.to_dict()
        asked_and_found = {name: (both[0][name], both[1].get(name)) for name in _MATTER if name in both[0]}
        asked_and_found["type"] = (str(asked.peft_type), str(config.peft_type))
    differences = [
        f"{name} {found} in the adapter, {wanted} asked for"
        for name, (wanted, found) in asked_and_found.items()
        if not (wanted == found or (isinstance(wanted, float) and found is not None and math.isclose(wanted, found)))
    ]
    if differences:
        raise ConfigError(
            f"the earlier adapter has other settings: {'; '.join(differences)}",
            where=str(folder),
            code="adapter_differs",
            fix="Ask for the adapter's own settings, or merge it first",
        )


def _fill(network: PeftModel, state: dict[str, Tensor], adapter: str) -> None:
    """Copy saved tensors into an adapter; every tensor must have its place and every place its tensor."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    places = get_peft_model_state_dict(network, adapter_name=adapter, save_embedding_layers=False)
    if adapter == START:
        state = {name: value for name, value in state.items() if name in places}
    wrong = sorted(places.keys() ^ state.keys())
    wrong += [name for name in places if name in state and places[name].shape != state[name].shape]
    if wrong:
        raise ConfigError(
            f"the adapter does not fit: {len(wrong)} weights differ, the first is {wrong[0]}",
            where=network.peft_config[ADAPTER].base_model_name_or_path,
            code="adapter_differs",
            fix="Use the model it was trained on, and the same target layers",
        )
    set_peft_model_state_dict(network, state, adapter_name=adapter)
