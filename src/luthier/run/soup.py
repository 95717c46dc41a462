"""Models averaged weight by weight: soups of several, and the way from a base to what was tuned (WiSE-FT)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from luthier.base.errors import ConfigError
from luthier.model import heads, methods
from luthier.model.adapters import fold_in
from luthier.model.config import ModelConfig
from luthier.model.folder import model_folder, read_json
from luthier.model.heads import CAUSAL, Head, learned_head
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.run.result import Usable, find
from luthier.run.specialist import KINDS, own_folder, skill_of

_OF_VECTORS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "[0-9]_*")
"""What sentence-transformers wants to know of a model that makes vectors."""


def average(base: ModelConfig, tuned: Sequence[str], weights: Sequence[float], share: float, folder: Path) -> Head:
    """Write (1 - share) * base + share * sum_i w_i tuned_i, in the base's stored types (Wortsman et al. 2022, both).

    A head that the base has not is that of the tuned ones alone.

    Args:
        tuned: runs, checkpoints, models or adapters, which are merged into their base first.
        weights: of each of them; scaled to sum to 1.
        share: 1 leaves the base out, 0 is the base.

    Returns:
        What stands on the backbone of the result.

    Raises:
        ConfigError: the models do not have the same weights, or their weights are held in few bits.
    """
    total = sum(weights)
    plain = find(base)
    parts = [_named(name, plain.model) for name in tuned]
    head = _head_of(parts[0])
    model = _whole(plain, head)
    learned = _lacking(plain, model)
    fresh = {name for name in _state(model) if any(f".{part}." in f".{name}" for part in learned)}
    sums = {name: value.float() * (0.0 if name in fresh else 1.0 - share) for name, value in _state(model).items()}
    for named, part, weight in zip(tuned, parts, weights, strict=True):
        other = _state(_whole(part, _head_of(part)))
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
            sums[name] += weight / total * (1.0 if name in fresh else share) * value.float()
    with torch.no_grad():
        for name, value in _state(model).items():
            value.copy_(sums[name])
    methods.save(model, folder)
    for found in (found for name in _OF_VECTORS for found in own_folder(parts[0]).glob(name)):
        copy = shutil.copytree if found.is_dir() else shutil.copyfile
        copy(found, folder / found.name)
    return head


def _lacking(base: Usable, model: Model) -> list[str]:
    """Modules of a model opened from a base that the base's files do not have: a head, and what pools for it."""
    if learned_head(base.model) is not None:
        return []
    pools = False
    for file in model_folder(base.model).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            pools |= any("pooler." in name for name in opened.keys())  # noqa: SIM118 (not a mapping)
    learned = [name for name in heads.modules(model.base, model.kind) if name != "pooler"]
    return learned if pools else [*learned, "pooler"]


def _named(name: str, base: ModelConfig) -> Usable:
    """A tuned model by its run, checkpoint, folder, or adapter over the base."""
    as_adapter = find(ModelConfig(path=base.path, adapters=(name,)))
    if (Path(as_adapter.model.adapters[-1]) / "adapter_config.json").exists():
        return as_adapter
    return find(ModelConfig(path=name))


def _head_of(usable: Usable) -> Head:
    """What a model was trained with."""
    learned = learned_head(usable.model)
    if learned is not None:
        return learned
    if usable.trained is not None and usable.trained.objective.type in KINDS:
        return Head(KINDS[usable.trained.objective.type])
    match skill_of(usable).kind:
        case "targets":
            return Head("seq2seq")
        case "vectors":
            names: list[str] = read_json(model_folder(usable.model) / "config.json").get("architectures") or []
            return Head("masked" if any(name.endswith("ForMaskedLM") for name in names) else "none")
        case _:
            return CAUSAL


def _whole(usable: Usable, head: Head) -> Model:
    """A model with its adapters merged, on the CPU, in float32 where adapters are."""
    config = usable.model
    if config.quant.on:
        raise ConfigError("weights in few bits cannot be averaged", where=config.path, fix="Use the original weights")
    model = load_model(
        config.model_copy(update={"dtype": "float32"}),
        torch.device("cpu"),
        tokenizer=load_tokenizer(config),
        trained=False,
        head=head,
    )
    methods.attach(model, config.adapters)
    if model.adapted:
        fold_in(model)
    return model


def _state(model: Model) -> dict[str, Tensor]:
    return dict(model.base.named_parameters())
