"""Settings that do not go together, each with what to do instead: refused before anything is read."""

from __future__ import annotations

from luthier.base.errors import ConfigError
from luthier.model.config import Full, Lora
from luthier.model.method import Adapting, Gradual, Lisa, Prompting
from luthier.objectives.config import (
    Distill,
    GenerativeRerank,
    Mlm,
    Multi,
    Pretrain,
    Seq2Seq,
    Sft,
    SpanCorruption,
)
from luthier.run.config import RunConfig, tasks_of

_IN_PIECES = Pretrain, Sft, Distill, Mlm, SpanCorruption
"""What can be learned of a row in pieces."""


def refuse(config: RunConfig, *, rows: bool = True) -> None:
    """Raises ConfigError for what would only fail later; rows: whether there must be training data."""
    if not config.model.path:
        raise ConfigError("no model was named", where="--model", fix="Give a folder or a hub id")
    if isinstance(config.objective, Multi):
        _several_tasks(config)
    elif rows and not config.data.datasets:
        raise ConfigError("no training data was named", where="--dataset", fix="Give at least one file or data set")
    _data(config)
    if config.eval.patience and not config.judged:
        raise ConfigError(
            "early stopping needs validation data", where="--early_stopping_patience", fix="Set --val_dataset"
        )
    _method(config)
    if config.train.shard == "full":
        _split(config)
    if config.model.dtype == "float16":
        raise ConfigError(
            "training in float16 loses small gradients", where="--torch_dtype", fix="Use bfloat16 or float32"
        )


def _data(config: RunConfig) -> None:
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
    asked = config.data.replay_ratio != type(config.data).model_fields["replay_ratio"].default
    if asked and not config.data.replay and not config.stages:
        raise ConfigError("there is nothing to replay", where="--replay_ratio", fix="Name sets with --replay_dataset")
    if config.data.combine and not isinstance(config.objective, Pretrain | Sft | Distill):
        what = f"only texts and chats can be joined, for pretrain, sft or distill, not for {config.objective.type}"
        raise ConfigError(what, where="--combine", fix="Leave it out")
    learned = [task.objective for task in tasks_of(config).values()] or [config.objective]
    whole = [one for one in learned if one is not None and not isinstance(one, _IN_PIECES)]
    if config.data.overlong == "split" and whole:
        raise ConfigError(
            f"a row of {whole[0].type} cannot be split, it is learned whole",
            where="--truncation_strategy",
            fix="Use truncate or drop",
        )


def _several_tasks(config: RunConfig) -> None:
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
    unknown = [name for name, task in tasks_of(config).items() if task.objective is None]
    if unknown:
        raise ConfigError(
            f"nobody said what the task {unknown[0]} learns", where=f"objective.tasks.{unknown[0]}.objective.type"
        )


def _method(config: RunConfig) -> None:
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
            f"predictions are held to those of the start for pretrain and sft only, not for {config.objective.type}",
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
    if config.model.vocabulary.grows and not isinstance(config.method, Lora | Full | Gradual | Lisa):
        raise ConfigError(
            "the rows of new tokens would never move",
            where=f"--train_type {config.method.type}",
            fix="Use --train_type lora, which trains them beside its adapters, or full",
        )


def _split(config: RunConfig) -> None:
    """Over several processes."""
    if isinstance(config.objective, Seq2Seq | SpanCorruption | Distill):
        raise ConfigError(
            f"what {config.objective.type} trains is not split over processes: an encoder with a decoder, or a "
            "student beside its teacher",
            where="--fsdp",
            fix="Leave it out: each process then holds the whole model",
        )
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
