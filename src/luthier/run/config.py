"""The whole of one run's settings, and the checks that span rooms."""

from __future__ import annotations

from luthier.base.config import Config
from luthier.base.errors import ConfigError
from luthier.base.secrets import secrets_in
from luthier.data.config import DataConfig
from luthier.engine.config import EvalConfig, LogConfig, OptimConfig, SaveConfig, StepConfig
from luthier.model.config import Lora, Method, ModelConfig
from luthier.objectives.config import Objective, Pretrain, Sft


class RunConfig(Config):
    """One training run."""

    objective: Objective = Sft()
    """What is learned."""
    model: ModelConfig = ModelConfig()
    """The base model."""
    method: Method = Lora()
    """Which numbers may move."""
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
    output_dir: str = "runs/luthier"
    """Parent of this run's own directory."""
    seed: int = 42
    """Seed of everything random."""
    device: str = "auto"
    """cpu, cuda, or auto."""


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
    if not config.model.path:
        raise ConfigError("no model was named", where="--model", fix="Give a folder or a hub id")
    if not config.data.datasets:
        raise ConfigError("no training data was named", where="--dataset", fix="Give at least one file or data set")
    if config.data.streaming and config.train.max_steps is None:
        raise ConfigError("streaming needs a length", where="--streaming", fix="Set --max_steps")
    if config.data.streaming and config.data.packing:
        raise ConfigError("packing looks at a whole epoch, streaming never sees one", where="--packing")
    if config.data.streaming and (config.data.split_ratio or config.data.interleave):
        raise ConfigError("a streamed set cannot be split or interleaved", where="--streaming")
    if config.eval.patience and not (config.data.validation or config.data.split_ratio):
        raise ConfigError(
            "early stopping needs validation data", where="--early_stopping_patience", fix="Set --val_dataset"
        )
    if config.model.quant.on and not isinstance(config.method, Lora):
        raise ConfigError(
            f"weights held in {config.model.quant.bits} bits cannot be trained",
            where=f"--train_type {config.method.type}",
            fix="Train an adapter over them with --train_type lora, or leave --quant_method and --quant_bits out",
        )
    if config.train.shard == "full":
        if not isinstance(config.objective, Pretrain | Sft):
            raise ConfigError(
                f"{config.objective.type} models are not split over processes", where="--fsdp", fix="Leave it out"
            )
        _refuse_what_cannot_be_split(config)
    if config.model.dtype == "float16":
        raise ConfigError(
            "training in float16 loses small gradients", where="--torch_dtype", fix="Use bfloat16 or float32"
        )
    pretrain = isinstance(config.objective, Pretrain)
    packing = config.data.packing if config.data.packing is not None else pretrain and not config.data.streaming
    overlong = config.data.overlong or ("split" if pretrain else "truncate")
    rate = config.optim.learning_rate
    if rate is None:
        rate = 1e-4 if isinstance(config.method, Lora) else 1e-5
    return config.model_copy(
        update={
            "model": _keeping_modules(config),
            "data": config.data.model_copy(update={"packing": packing, "overlong": overlong}),
            "optim": config.optim.model_copy(update={"learning_rate": rate}),
            "eval": config.eval.model_copy(
                update={
                    "every": config.eval.every or config.save.every,
                    "micro_batch": config.eval.micro_batch or config.train.micro_batch,
                }
            ),
        }
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
