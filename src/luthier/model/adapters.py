"""Adapters through PEFT: put on, continued, stacked, merged."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.base.errors import ConfigError, ModelError
from luthier.model import heads, lowbit
from luthier.model.adapterfile import adapter_folder, misfit, read_adapter
from luthier.model.causal import Model
from luthier.model.config import Lora
from luthier.model.folder import (
    first_line,
)
from luthier.model.inits import ADAPTER, START, add_start, half, lora_layers, start_inside
from luthier.model.method import Adapting, Boft, Oft, Prompting
from luthier.model.prompts import Before, begin
from luthier.model.tuners import peft_settings

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

# PEFT imports it, and it then speaks of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_EARLIER = "earlier"
"""Begins the names of adapters that lie under the one that is on."""


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
    config, state, trained_rank = read_adapter(folder)
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
    config, state, _ = read_adapter(adapter_folder(model.config, folder))
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
        config, state, _ = read_adapter(folder)
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
    if what := misfit({name: value.shape for name, value in places.items()}, state):
        raise ConfigError(
            what,
            where=network.peft_config[ADAPTER].base_model_name_or_path,
            code="adapter_differs",
            fix="Use the model it was trained on, and the same target layers",
        )
    set_peft_model_state_dict(network, state, adapter_name=adapter)
