"""Parameter groups, learning-rate schedule, and optimizers whose state is plain tensors by parameter name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.base.errors import ConfigError
from luthier.engine.config import OptimConfig
from luthier.model import sharding
from luthier.model.folder import first_line
from luthier.model.rounding import bitsandbytes

SEPARATOR = "::"

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Makes an optimizer of parameter groups."""

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


def parameter_groups(
    named: Mapping[str, nn.Parameter], config: OptimConfig, scale: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Groups of equal weight decay and learning rate.  Matrices decay; biases, norms and other vectors do not.

    Args:
        named: trained parameters by name.
        scale: learning rate of a parameter relative to the run's (layer-wise decay, LoRA+).
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named.items():
        decay, rate = config.weight_decay if parameter.ndim >= 2 else 0.0, scale(name)
        group = groups.setdefault((decay, rate), {"params": [], "weight_decay": decay, "scale": rate})
        group["params"].append(parameter)
    return list(groups.values())


def check(config: OptimConfig, device: torch.device) -> None:
    """Find out before anything is loaded whether the optimizer can work here.

    Raises:
        MissingExtra: bitsandbytes is needed and not installed.
        ConfigError: a paged optimizer without a GPU, or no kernel for this device.
    """
    if config.name not in _BITSANDBYTES:
        return
    asked = f"--optim {config.name}"
    bitsandbytes(asked)
    if config.name.startswith("paged") and device.type != "cuda":
        what = "it moves state between a GPU and the machine's memory, and there is no GPU"
        raise ConfigError(what, where=asked, fix="Use adamw or adamw_8bit")
    weight = nn.Parameter(torch.ones(_SMALLEST, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        Optimizer({"weight": weight}, config, lambda _: 1.0).step(1.0)
    except RuntimeError as error:
        what = f"it does not run on this {device.type} ({first_line(error)})"
        raise ConfigError(what, where=asked, fix="Use adamw") from error


class Optimizer:
    """One or two torch optimizers over named parameters, with a schedule and a state that saves without pickle.

    Args:
        scale: as in `parameter_groups`.
        tied: whether the embeddings are the head as well.

    Attributes:
        can_hold_still: whether `step` takes `unless`: torch's fused optimizers, over weights that are whole.

    Raises:
        MissingExtra: it is one of bitsandbytes', which is not installed.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        config: OptimConfig,
        scale: Callable[[str], float],
        *,
        tied: bool = False,
    ):
        assert config.learning_rate is not None, "the learning rate is filled in when the config is resolved"
        self.named, self.peak = dict(named), config.learning_rate
        self.parts = _build(self.named, config, scale, tied)
        whole = all(sharding.held(weight) is weight for weight in self.named.values())
        self.can_hold_still = whole and all(part.defaults.get("fused") for part in self.parts)

    def step(self, factor: float, *, unless: Tensor | None = None) -> None:
        """Move the weights at `factor` times the peak learning rate.

        unless: float32 scalar; where the device finds 1 in it, nothing moves.
        """
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.peak * factor * group["scale"]
            # torch's name for it: gradient scaling holds weights still in this way.
            part.found_inf = unless  # pyright: ignore[reportAttributeAccessIssue]
            part.step()

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        for weight in self.named.values():
            weight.grad = None

    def forget_resting(self) -> None:
        """Let go of the state of parameters that do not move now."""
        for part in self.parts:
            for parameter in [held for held in part.state if not held.requires_grad]:
                del part.state[parameter]

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
    named: Mapping[str, nn.Parameter], config: OptimConfig, scale: Callable[[str], float], tied: bool
) -> Sequence[torch.optim.Optimizer]:
    # The learning rate given here is never used: every step sets each group's own.
    betas, eps = (config.beta1, config.beta2), config.eps
    adamw: Build = partial(torch.optim.AdamW, betas=betas, eps=eps, fused=True)
    most, rest = {name: named[name] for name in majority(named, config, tied)}, adamw
    match config.name:
        case "adamw":
            usual = adamw
        case "adam":
            usual = partial(torch.optim.Adam, betas=betas, eps=eps, fused=True)
        case "sgd":
            usual = partial(torch.optim.SGD, momentum=config.beta1)
        case "adagrad":
            usual = partial(torch.optim.Adagrad, eps=eps)
        case "adafactor":
            usual = torch.optim.Adafactor
        case "muon":
            # At the rate of the AdamW beside it, which `match_rms_adamw` makes fitting (Moonlight, arXiv 2502.16982).
            usual = partial(torch.optim.Muon, momentum=config.beta1, adjust_lr_fn="match_rms_adamw")
        case _:
            package, options = bitsandbytes(f"--optim {config.name}"), {} if "lion" in config.name else {"eps": eps}
            for_most, for_rest = _BITSANDBYTES[config.name]
            kind = getattr(package.optim, for_most)
            usual = partial(kind if "paged" in config.name else _unhurried(kind), betas=betas, **options)
            rest = partial(getattr(package.optim, for_rest), betas=betas, **options) if for_rest else adamw
    others = {name: p for name, p in named.items() if name not in most}
    return [build(parameter_groups(own, config, scale)) for build, own in ((usual, most), (rest, others)) if own]


def majority(named: Mapping[str, Tensor], config: OptimConfig, tied: bool) -> list[str]:
    """The weights that the optimizer of that name moves; another one moves the rest."""
    if config.name == "muon":  # orthogonalises hidden matrices only; AdamW moves embeddings, heads and vectors
        return [name for name, p in named.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    if config.name not in _BITSANDBYTES:
        return list(named)
    # Embeddings, of which a step moves few rows, keep 32 bits of state (Dettmers et al. 2022, section 2.3);
    # where they are the head too, every step moves all of them.
    return [name for name, p in named.items() if (tied or "embed" not in name) and p.numel() >= _SMALLEST]


def _unhurried(kind: Any) -> Any:
    """bitsandbytes' optimizer without its wait for the device after each parameter, which only paged state needs."""

    def step(self: Any, closure: None = None) -> None:
        for number, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.init_state(group, parameter, number, place)
                    self.update_step(group, parameter, number, place)

    return type(kind.__name__, (kind,), {"step": torch.no_grad()(step)})


def _paged(part: Any, parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Saved state in memory that can leave the GPU, as the optimizer itself would have made it."""
    buffer: Tensor = part.get_state_buffer(parameter, dtype=value.dtype)
    return buffer.copy_(value)
