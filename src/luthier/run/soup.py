"""Models averaged weight by weight: soups of several, and the way from a base to what was tuned (WiSE-FT)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from luthier.base.errors import ConfigError
from luthier.model import methods
from luthier.model.adapters import fold_in
from luthier.model.config import ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.run.result import find


def average(base: ModelConfig, tuned: Sequence[str], weights: Sequence[float], share: float, folder: Path) -> None:
    """Write (1 - share) * base + share * sum_i w_i tuned_i, in the base's stored types (Wortsman et al. 2022, both).

    Args:
        tuned: runs, checkpoints, models or adapters, which are merged into their base first.
        weights: of each of them; scaled to sum to 1.
        share: 1 leaves the base out, 0 is the base.

    Raises:
        ConfigError: the models do not have the same weights, or their weights are held in few bits.
    """
    total = sum(weights)
    plain = find(base).model
    model = _whole(plain)
    shares = [share * weight / total for weight in weights]
    sums = {name: value.float() * (1.0 - share) for name, value in _state(model).items()}
    for named, own in zip(tuned, shares, strict=True):
        other = _state(_whole(_named(named, plain)))
        different = sorted(sums.keys() ^ other.keys()) + [
            name for name in sums if name in other and other[name].shape != sums[name].shape
        ]
        if different:
            raise ConfigError(
                f"not the same kind of model as the base: {len(different)} weights differ, the first is {different[0]}",
                where=named,
                fix="Average models that were tuned from one base",
            )
        for name, value in other.items():
            sums[name] += own * value.float()
    with torch.no_grad():
        for name, value in _state(model).items():
            value.copy_(sums[name])
    methods.save(model, folder)


def _named(name: str, base: ModelConfig) -> ModelConfig:
    """A tuned model by its run, checkpoint, folder, or adapter over the base."""
    as_adapter = find(ModelConfig(path=base.path, adapters=(name,))).model
    if (Path(as_adapter.adapters[-1]) / "adapter_config.json").exists():
        return as_adapter
    return find(ModelConfig(path=name)).model


def _whole(config: ModelConfig) -> Model:
    """A model with its adapters merged, on the CPU, in float32 where adapters are."""
    if config.quant.on:
        raise ConfigError("weights in few bits cannot be averaged", where=config.path, fix="Use the original weights")
    tokenizer = load_tokenizer(config)
    model = load_model(
        config.model_copy(update={"dtype": "float32"}), torch.device("cpu"), tokenizer=tokenizer, trained=False
    )
    methods.attach(model, config.adapters)
    if model.adapted:
        fold_in(model)
    return model


def _state(model: Model) -> dict[str, Tensor]:
    return dict(model.base.named_parameters())
