"""The whole of one run's settings, and the checks that span rooms."""

from __future__ import annotations

import re
from typing import Any

from luthier.base.config import Config, merge, validate
from luthier.base.errors import ConfigError
from luthier.base.secrets import secrets_in
from luthier.data.config import DataConfig
from luthier.engine.config import EvalConfig, LogConfig, OptimConfig, SaveConfig, StepConfig
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.method import Adapting, Gradual, Lisa, Prompting
from luthier.objectives.config import (
    Distill,
    GenerativeRerank,
    Multi,
    Objective,
    OneTask,
    Pretrain,
    Retain,
    Seq2Seq,
    Sft,
    SpanCorruption,
    overlong,
)


class RunConfig(Config):
    """One training run."""

    objective: Objective = Sft()
    """What is learned."""
    model: ModelConfig = ModelConfig()
    """The base model."""
    method: Method = Lora()
    """Which numbers may move."""
    retain: Retain = Retain()
    """Against forgetting."""
    data: DataConfig = DataConfig()
    """Data sets and their rows."""
    train: StepConfig = StepConfig()
    """Steps."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and learning rate."""
    eval: EvalConfig = EvalConfig()
    """Evaluation while training."""
    save: SaveConfig = SaveConfig()
    """Checkpoints."""
    log: LogConfig = LogConfig()
    """Logging."""
    stages: dict[str, dict[str, Any]] = {}
    """Runs one after the other, each on the model of the one before, by name: the settings in which each differs."""
    output_dir: str = "runs/luthier"
    """Parent of this run's own directory."""
    seed: int = 42
    """Seed of everything random."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    @property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """The training sets of each task, by its name; empty where there is only one."""
        if isinstance(self.objective, Multi):
            return {name: task.datasets for name, task in self.objective.tasks.items()}
        return {"": self.data.datasets}

    @property
    def judged(self) -> bool:
        """Whether there is anything that the model is judged on while it is trained."""
        own = any(task.validation for task in _tasks(self).values())
        own |= any(stage_of(self, name).judged for name in self.stages)
        return bool(self.data.validation or self.data.split_ratio or own)


def alone(config: RunConfig, name: str) -> RunConfig:
    """The settings of one task as if it were the only one; of a run that has only one, its own."""
    if not isinstance(config.objective, Multi):
        return config
    task = config.objective.tasks[name]
    assert task.objective is not None, "what the rows are for is found out when the config is read"
    cut = config.data.overlong or overlong(task.objective)
    data = config.data.model_copy(update={"datasets": task.datasets, "validation": task.validation, "overlong": cut})
    return config.model_copy(update={"objective": task.objective, "data": data})


_OF_THE_SEQUENCE = ("stages", "output_dir", "device", "save.resume", "model.path", "model.adapters")
"""Settings that no stage has for itself."""


def stage_of(config: RunConfig, name: str) -> RunConfig:
    """The settings of one stage, still without what depends on other settings.

    Raises:
        ConfigError: naming what is wrong by its path.
    """
    own = config.stages[name]
    tree = merge(config.model_dump(mode="json", exclude={"stages"}), own)
    try:
        return validate(RunConfig, tree)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"stages.{name}", code=error.code, fix=error.fix) from error


def _check_stages(config: RunConfig) -> None:
    wrong = [name for name in config.stages if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]
    if wrong:
        raise ConfigError(
            f"a stage's name is made of letters, digits, _ and -; {wrong[0]!r} is not", where="stages", code="bad_value"
        )
    names = list(config.stages)
    for name in names:
        for path in _OF_THE_SEQUENCE:
            group, _, last = path.rpartition(".")
            own = config.stages[name].get(group, {}) if group else config.stages[name]
            if isinstance(own, dict) and last in own:
                raise ConfigError("this is said for all stages together", where=f"stages.{name}.{path}")
        stage = stage_of(config, name)
        try:
            resolve(stage)
        except ConfigError as error:
            raise ConfigError(
                error.what, where=f"stages.{name}: {error.where}", code=error.code, fix=error.fix
            ) from error
        several = isinstance(stage.objective, Multi)
        if several and stage.method.supports.merging and name != names[-1]:
            raise ConfigError(
                "the adapter of several tasks is no model for another stage",
                where=f"stages.{name}",
                fix="Make it the last stage, or use --train_type full",
            )


def resolve(config: RunConfig) -> RunConfig:
    """Fill in the defaults that depend on other settings, and refuse what cannot work.

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
        _check_stages(config)
        return config
    if not config.model.path:
        raise ConfigError("no model was named", where="--model", fix="Give a folder or a hub id")
    if isinstance(config.objective, Multi):
        _refuse_what_several_tasks_cannot(config)
    elif not config.data.datasets:
        raise ConfigError("no training data was named", where="--dataset", fix="Give at least one file or data set")
    if config.data.streaming and config.train.max_steps is None:
        raise ConfigError("streaming needs a length", where="--streaming", fix="Set --max_steps")
    if config.data.streaming and config.data.packing:
        raise ConfigError("packing looks at a whole epoch, streaming never sees one", where="--packing")
    if config.data.streaming and (config.data.split_ratio or config.data.interleave):
        raise ConfigError("a streamed set cannot be split or interleaved", where="--streaming")
    if config.data.order != "random" and config.data.streaming:
        raise ConfigError("a streamed set has the order of its files", where="--order", fix="Leave --streaming out")
    if config.data.combine and (config.data.streaming or config.data.order != "random"):
        raise ConfigError(
            "samples are joined once, before training", where="--combine", fix="Leave --order and --streaming out"
        )
    if config.data.combine and not isinstance(config.objective, Pretrain | Sft | Distill):
        raise ConfigError("only texts and chats can be joined", where="--combine", fix="Leave it out")
    if config.eval.patience and not config.judged:
        raise ConfigError(
            "early stopping needs validation data", where="--early_stopping_patience", fix="Set --val_dataset"
        )
    _refuse_what_the_method_cannot(config)
    if config.model.vocabulary.grows and not isinstance(config.method, Lora | Full | Gradual | Lisa):
        raise ConfigError(
            "the rows of new tokens would never move",
            where=f"--train_type {config.method.type}",
            fix="Use --train_type lora, which trains them beside its adapters, or full",
        )
    if config.train.shard == "full":
        if isinstance(config.objective, Seq2Seq | SpanCorruption | Distill):
            raise ConfigError(
                f"what {config.objective.type} trains is not split over processes: an encoder with a decoder, or a "
                "student beside its teacher",
                where="--fsdp",
                fix="Leave it out: each process then holds the whole model",
            )
        _refuse_what_cannot_be_split(config)
    if config.model.dtype == "float16":
        raise ConfigError(
            "training in float16 loses small gradients", where="--torch_dtype", fix="Use bfloat16 or float32"
        )
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


def _refuse_what_several_tasks_cannot(config: RunConfig) -> None:
    data, where = config.data, "--task_type multi"
    refused = {
        "--dataset": (data.datasets or data.validation, "each task has its own sets: --objective.tasks.NAME.datasets"),
        "--streaming": (data.streaming, "several tasks are not streamed"),
        "--packing": (data.packing, "a step holds each task by its share of the samples"),
        "--combine": (data.combine, "samples of several tasks are not joined"),
        "--order": (data.order != "random", "a step holds each task by its share, in random order"),
        "--interleave_prob": (data.interleave, "say it by each task's ratio"),
        "--replay": (data.replay, "make what is replayed a task of its own"),
        "--adapters": (config.model.adapters, "merge the earlier adapter into its base first"),
        "--fsdp": (config.train.shard == "full", "heads of several tasks are not split over processes"),
        f"--train_type {config.method.type}": (not config.method.supports.packing, "use --train_type lora or full"),
    }
    for flag, (asked, why) in refused.items():
        if asked:
            raise ConfigError(f"does not go together with several tasks: {why}", where=f"{where} {flag}")
    if config.retain.general or config.retain.kl or config.retain.lwf:
        raise ConfigError(
            "what must not be forgotten is for one task", where=f"{where} retain", fix="Make it a task, or use l2sp"
        )
    unknown = [name for name, task in _tasks(config).items() if task.objective is None]
    if unknown:
        raise ConfigError(
            f"nobody said what the task {unknown[0]} learns", where=f"objective.tasks.{unknown[0]}.objective.type"
        )


def _tasks(config: RunConfig) -> dict[str, OneTask]:
    return config.objective.tasks if isinstance(config.objective, Multi) else {}


def _refuse_what_the_method_cannot(config: RunConfig) -> None:
    """Each method says what it goes together with."""
    supports, where = config.method.supports, f"--train_type {config.method.type}"
    if config.model.quant.on and not supports.few_bits:
        this = "an adapter of this kind over weights" if isinstance(config.method, Adapting) else "weights"
        raise ConfigError(
            f"{this} held in {config.model.quant.bits} bits cannot be trained",
            where=where,
            fix="Train an adapter over them with --train_type lora, or leave --quant_method and --quant_bits out",
        )
    if config.data.packing and not supports.packing:
        raise ConfigError(
            "what stands before each text keeps texts from lying end to end",
            where=f"{where} --packing",
            fix="Leave --packing out: texts are padded then",
        )
    if isinstance(config.method, Prompting) and not isinstance(
        config.objective, Pretrain | Sft | Distill | GenerativeRerank
    ):
        raise ConfigError(
            "virtual tokens are put before causal language models only",
            where=f"{where} --task_type {config.objective.type}",
            fix="Use --train_type lora or ia3",
        )
    if config.train.gradient_checkpointing and not supports.checkpointing:
        raise ConfigError(
            "keys and values before the text are lost where layers are computed again",
            where=f"{where} --gradient_checkpointing",
            fix="Leave --gradient_checkpointing out",
        )
    if config.retain.on and config.train.shard == "full":
        raise ConfigError(
            "what is held on to is not split over processes", where="--fsdp", fix="Leave --fsdp or retain.* out"
        )
    if (config.retain.kl or config.retain.lwf) and not isinstance(config.objective, Pretrain | Sft):
        raise ConfigError(
            f"a model for {config.objective.type} made no predictions before",
            where="retain.kl, retain.lwf",
            fix="Use retain.l2sp or retain.ewc",
        )
    if config.data.streaming and config.data.replay:
        raise ConfigError("a streamed set cannot be mixed with others", where="--streaming", fix="Leave replay out")
    if config.train.shard == "full" and not supports.sharding:
        raise ConfigError(
            "this method is not split over processes",
            where=f"{where} --fsdp",
            fix="Leave --fsdp out, or use --train_type lora or full",
        )
    if config.train.ema_decay is not None and not supports.average:
        raise ConfigError(
            "what this method saves is not an average of its weights",
            where=f"{where} --train.ema_decay",
            fix="Leave the average out",
        )
    if config.model.adapters and not supports.continues and not supports.merging:
        raise ConfigError(
            "an earlier adapter of this kind cannot be trained further: the network that made it is not saved",
            where=f"{where} --adapters",
            fix="Use --resume_from_checkpoint to go on with the same run",
        )


def _refuse_what_cannot_be_split(config: RunConfig) -> None:
    if config.model.quant.on:
        raise ConfigError(
            f"weights held in {config.model.quant.bits} bits are not split over processes",
            where="--fsdp",
            fix="Leave it out: each device then holds all of them; or leave --quant_method and --quant_bits out",
        )
    if config.optim.name not in ("adamw", "adam", "sgd", "adagrad", "muon"):
        raise ConfigError(
            "the state of this optimizer cannot be split over processes",
            where=f"--optim {config.optim.name}",
            fix="Use adamw, whose state each process then holds a part of, or leave --fsdp out",
        )


def _keeping_modules(config: RunConfig) -> ModelConfig:
    """Modules that are trained whole are not rounded."""
    quant = config.model.quant
    if not (quant.on and isinstance(config.method, Lora)):
        return config.model
    skip = tuple(dict.fromkeys((*quant.skip, *config.method.modules_to_save)))
    return config.model.model_copy(update={"quant": quant.model_copy(update={"skip": skip})})
