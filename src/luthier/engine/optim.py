"""Parameter groups, learning-rate schedule, and optimizers whose state is plain tensors by parameter name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.base.errors import MissingExtra
from luthier.engine.config import OptimConfig

SEPARATOR = "::"


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


class Optimizer:
    """One or two torch optimizers over named parameters, with a schedule and a state that saves without pickle.

    Args:
        scale: as in `parameter_groups`.

    Raises:
        MissingExtra: adamw_8bit without bitsandbytes.
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
            part.state[parameter][key] = int(value) if stays_int else value.to(parameter.device if on_device else "cpu")


def _build(
    named: Mapping[str, nn.Parameter], config: OptimConfig, scale: Callable[[str], float]
) -> Sequence[torch.optim.Optimizer]:
    # The learning rate given here is never used: every step sets each group's own.
    betas, eps = (config.beta1, config.beta2), config.eps
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
            groups = parameter_groups(rest, config, scale)
            parts.append(torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True))
        return parts
    groups = parameter_groups(named, config, scale)
    match config.name:
        case "adamw":
            return [torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)]
        case "adam":
            return [torch.optim.Adam(groups, betas=betas, eps=eps, fused=True)]
        case "sgd":
            return [torch.optim.SGD(groups, momentum=config.beta1)]
        case "adagrad":
            return [torch.optim.Adagrad(groups, eps=eps)]
        case "adafactor":
            return [torch.optim.Adafactor(groups)]
        case "adamw_8bit":
            return [_eight_bit()(groups, betas=betas, eps=eps)]


def _is_vocabulary(name: str) -> bool:
    return "embed" in name or "lm_head" in name


def _eight_bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "quant", what_for="--optim adamw_8bit") from error
    return bitsandbytes.optim.AdamW8bit
