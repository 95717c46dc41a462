"""From settings as they were given to those a run is made of: defaults that depend on others, and the checks."""

from __future__ import annotations

import re

from luthier.base.errors import ConfigError
from luthier.base.secrets import secrets_in
from luthier.model.config import Lora, ModelConfig
from luthier.model.method import Adapting, Prompting
from luthier.objectives.config import Multi, Pretrain, overlong
from luthier.run.combinations import refuse
from luthier.run.config import RunConfig, stage_of

_OF_THE_SEQUENCE = ("stages", "output_dir", "device", "save.resume", "model.path", "model.adapters")
"""Settings that no stage has for itself."""

_CAUSAL = ("pretrain", "sft", "distill", "generative_reranker")
"""Objectives whose adapters lie over the same model."""


def resolve(config: RunConfig, *, rows: bool = True) -> RunConfig:
    """Fill in the defaults that depend on other settings, and refuse what cannot work.

    Args:
        rows: whether there must be training data.

    Raises:
        ConfigError: for a combination that would only fail later.
    """
    if held := secrets_in(config.model_dump(mode="json")):
        raise ConfigError(
            "this setting holds a secret, and settings are written into every checkpoint",
            where=", ".join(dict.fromkeys(held)),
            fix="Take it out, and keep it in an environment variable",
            code="secret_in_config",
        )
    if config.stages:
        _check_stages(config, rows=rows)
        return config
    refuse(config, rows=rows)
    pretrain = isinstance(config.objective, Pretrain)
    packing = config.data.packing
    if packing is None:
        packing = pretrain and not config.data.streaming and config.method.supports.packing
    several = isinstance(config.objective, Multi)  # then each task has its own
    overlong_rows = config.data.overlong if several else config.data.overlong or overlong(config.objective)
    rate = config.optim.learning_rate
    if rate is None:
        rate = config.method.rate
    return config.model_copy(
        update={
            "model": _keeping_modules(config),
            "data": config.data.model_copy(update={"packing": packing, "overlong": overlong_rows}),
            "optim": config.optim.model_copy(update={"learning_rate": rate}),
            "eval": config.eval.model_copy(
                update={
                    "every": config.eval.every or config.save.every,
                    "micro_batch": config.eval.micro_batch or config.train.micro_batch,
                }
            ),
        }
    )


def _check_stages(config: RunConfig, *, rows: bool) -> None:
    wrong = [name for name in config.stages if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]
    if wrong:
        raise ConfigError(
            f"a stage's name is made of letters, digits, _ and -; {wrong[0]!r} is not", where="stages", code="bad_value"
        )
    names = list(config.stages)
    for number, name in enumerate(names):
        for path in _OF_THE_SEQUENCE:
            group, _, last = path.rpartition(".")
            own = config.stages[name].get(group, {}) if group else config.stages[name]
            if isinstance(own, dict) and last in own:
                raise ConfigError("this is said for all stages together", where=f"stages.{name}.{path}")
        stage = stage_of(config, name)
        try:
            resolve(stage, rows=rows)
        except ConfigError as error:
            raise ConfigError(
                error.what, where=f"stages.{name}: {error.where}", code=error.code, fix=error.fix
            ) from error
        following = stage_of(config, names[number + 1]) if number + 1 < len(names) else None
        before = isinstance(stage.method, Prompting)
        if before and following is not None and not trains_further(stage, following):
            raise ConfigError(
                "what stands before the text cannot become part of the model that the next stage starts from",
                where=f"stages.{name}: --train_type {stage.method.type}",
                fix="Make it the last stage, or use --train_type lora",
            )
        several = isinstance(stage.objective, Multi)
        if several and stage.method.supports.merging and name != names[-1]:
            raise ConfigError(
                "the adapter of several tasks is no model for another stage",
                where=f"stages.{name}",
                fix="Make it the last stage, or use --train_type full",
            )


def trains_further(earlier: RunConfig, stage: RunConfig) -> bool:
    """Whether a stage goes on with the adapter of the one before; else it starts from a whole model."""
    same = isinstance(stage.method, Adapting) and stage.method == earlier.method and stage.method.supports.continues
    return same and {earlier.objective.type, stage.objective.type} <= {*_CAUSAL}


def _keeping_modules(config: RunConfig) -> ModelConfig:
    """Modules that are trained whole are not rounded."""
    quant = config.model.quant
    if not (quant.on and isinstance(config.method, Lora)):
        return config.model
    skip = tuple(dict.fromkeys((*quant.skip, *config.method.modules_to_save)))
    return config.model.model_copy(update={"quant": quant.model_copy(update={"skip": skip})})
