"""Parameter groups, learning-rate schedule, and optimizers whose state is plain tensors by parameter name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from luthier.base.errors import ConfigError, MissingExtra
from luthier.engine.config import OptimConfig
from luthier.model import sharding

SEPARATOR = "::"

# Names in bitsandbytes: what most weights get, and what embeddings and the smallest get; unset: torch's own AdamW.
_BITSANDBYTES = {
    "adamw_8bit": ("AdamW8bit", None),
    "lion_8bit": ("Lion8bit", "Lion32bit"),
    "paged_adamw": ("PagedAdamW32bit", "PagedAdamW32bit"),
    "paged_adamw_8bit": ("PagedAdamW8bit", "PagedAdamW32bit"),
}

# bitsandbytes would hold the state of fewer numbers in 32 bits anyway.
_SMALLEST = 4096


def schedule(config: OptimConfig, step: int, total: int) -> float:
    """Factor on the peak learning rate for 0-based `step` of `total`.

    Linear warm-up to 1 (step 0 already moves), then the chosen shape down to `min_ratio`.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    shape = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.min_ratio + (1.0 - config.min_ratio) * shape


def is_matrix(parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices decay, biases, norms and other vectors do not."""
    return parameter.ndim >= 2


def parameter_groups(
    named: Mapping[str, nn.Parameter], config: OptimConfig, scale: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Groups of equal weight decay and learning rate.

    Args:
        named: trained parameters by name.
        scale: learning rate of a parameter relative to the run's (layer-wise decay, LoRA+).
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named.items():
        decay = config.weight_decay if is_matrix(parameter) else 0.0
        key = (decay, scale(name))
        group = groups.setdefault(key, {"params": [], "weight_decay": decay, "scale": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def check(config: OptimConfig, device: torch.device) -> None:
    """Find out before anything is loaded whether the optimizer can work here.

    Raises:
        MissingExtra: bitsandbytes is needed and not installed.
        ConfigError: a paged optimizer without a GPU.
    """
    if config.name not in _BITSANDBYTES:
        return
    _bitsandbytes(config.name)
    if config.name.startswith("paged") and device.type != "cuda":
        raise ConfigError(
            "it moves state between a GPU and the machine's memory, and there is no GPU",
            where=f"--optim {config.name}",
            fix="Use adamw or adamw_8bit",
        )


class Optimizer:
    """One or two torch optimizers over named parameters, with a schedule and a state that saves without pickle.

    Args:
        scale: as in `parameter_groups`.

    Raises:
        MissingExtra: it is one of bitsandbytes', which is not installed.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], config: OptimConfig, scale: Callable[[str], float]):
        assert config.learning_rate is not None, "the learning rate is filled in when the config is resolved"
        self.named, self.peak = dict(named), config.learning_rate
        self.parts = _build(self.named, config, scale)

    def step(self, factor: float) -> None:
        """Move the weights at `factor` times the peak learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.peak * factor * group["scale"]
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every state tensor, named `parameter::key`."""
        names = {id(parameter): name for name, parameter in self.named.items()}
        found: dict[str, Tensor] = {}
        for part in self.parts:
            for parameter, values in part.state.items():
                for key, value in values.items():
                    if value is not None:
                        # bitsandbytes lets parameters share their code books, which no safetensors file can hold.
                        tensor = value.clone() if key.startswith("qmap") else torch.as_tensor(value)
                        found[f"{names[id(parameter)]}{SEPARATOR}{key}"] = tensor
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave.  Counters stay on the CPU unless the optimizer keeps them beside the weights."""
        owner = {id(p): part for part in self.parts for group in part.param_groups for p in group["params"]}
        for part in self.parts:
            part.state.clear()
        for full, value in state.items():
            name, key = full.rsplit(SEPARATOR, 1)
            parameter = self.named[name]
            part = owner[id(parameter)]
            on_device = value.ndim > 0 or bool(part.defaults.get("fused"))
            stays_int = key == "step" and value.dtype == torch.int64  # plain Python counter (bitsandbytes)
            if value.ndim > 0 and value.shape == parameter.shape:
                value = sharding.part(value, parameter)
            if stays_int:
                part.state[parameter][key] = int(value)
            elif key.startswith("state") and getattr(part, "is_paged", False):
                part.state[parameter][key] = _paged(part, parameter, value)
            else:
                part.state[parameter][key] = value.to(parameter.device if on_device else "cpu")


def _build(
    named: Mapping[str, nn.Parameter], config: OptimConfig, scale: Callable[[str], float]
) -> Sequence[torch.optim.Optimizer]:
    if config.name == "muon":
        # Muon orthogonalises hidden matrices only; embeddings, heads and vectors go to AdamW at the same rate,
        # which `match_rms_adamw` makes comparable (Moonlight, arXiv 2502.16982).
        hidden = {name: p for name, p in named.items() if p.ndim == 2 and not _is_vocabulary(name)}
        rest = {name: p for name, p in named.items() if name not in hidden}
        parts: list[torch.optim.Optimizer] = []
        if hidden:
            groups = parameter_groups(hidden, config, scale)
            parts.append(torch.optim.Muon(groups, momentum=config.beta1, adjust_lr_fn="match_rms_adamw"))
        if rest:
            parts.append(_adamw(parameter_groups(rest, config, scale), config))
        return parts
    if config.name in _BITSANDBYTES:
        return _of_bitsandbytes(named, config, scale)
    groups = parameter_groups(named, config, scale)
    match config.name:
        case "adamw":
            return [_adamw(groups, config)]
        case "adam":
            return [torch.optim.Adam(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)]
        case "sgd":
            return [torch.optim.SGD(groups, momentum=config.beta1)]
        case "adagrad":
            return [torch.optim.Adagrad(groups, eps=config.eps)]
        case _:
            return [torch.optim.Adafactor(groups)]


def _of_bitsandbytes(
    named: Mapping[str, nn.Parameter], config: OptimConfig, scale: Callable[[str], float]
) -> Sequence[torch.optim.Optimizer]:
    """State in 8 bits by blocks; embeddings, whose gradients are uneven, keep 32 (Dettmers et al. 2022, 2.3)."""
    optim, (usual, other) = _bitsandbytes(config.name).optim, _BITSANDBYTES[config.name]
    options: dict[str, Any] = {"betas": (config.beta1, config.beta2)}
    if "lion" not in config.name:
        options["eps"] = config.eps
    most = {name: weight for name, weight in named.items() if "embed" not in name and weight.numel() >= _SMALLEST}
    rest = {name: weight for name, weight in named.items() if name not in most}
    parts: list[torch.optim.Optimizer] = []
    if most:
        parts.append(getattr(optim, usual)(parameter_groups(most, config, scale), **options))
    if rest:
        groups = parameter_groups(rest, config, scale)
        parts.append(getattr(optim, other)(groups, **options) if other else _adamw(groups, config))
    return parts


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    # The learning rate given here is never used: every step sets each group's own.
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def _paged(part: Any, parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Saved state in memory that can leave the GPU, as the optimizer itself would have made it."""
    buffer: Tensor = part.get_state_buffer(parameter, dtype=value.dtype)
    return buffer.copy_(value)


def _is_vocabulary(name: str) -> bool:
    return "embed" in name or "lm_head" in name


@cache
def _bitsandbytes(name: str) -> Any:
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "quant", what_for=f"--optim {name}") from error
