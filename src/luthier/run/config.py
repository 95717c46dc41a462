"""The whole of one run's settings, and the checks that span rooms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from luthier.base.config import Config, Named, merge, validate
from luthier.base.errors import ConfigError
from luthier.data.config import DataConfig
from luthier.engine.config import EvalConfig, LogConfig, OptimConfig, SaveConfig, StepConfig
from luthier.model.config import Lora, Method, ModelConfig
from luthier.objectives.config import (
    Multi,
    Objective,
    OneTask,
    Retain,
    Sft,
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
    output_dir: Named = "runs/luthier"
    """Parent of this run's own directory."""
    seed: int = Field(default=42, ge=0, lt=2**63)
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
        own = any(task.validation for task in tasks_of(self).values())
        own |= any(stage_of(self, name).judged for name in self.stages)
        return bool(self.data.validation or self.data.split_ratio or own)


NEWEST = ("true", "last", "latest")
"""Words for the newest run of the output directory, in place of a checkpoint or a run to resume."""


def place_to_resume(config: RunConfig) -> Path | None:
    """Where to look for what is resumed; None for a run that begins."""
    named = config.save.resume
    if named is None or named.lower() == "false":
        return None
    return Path(config.output_dir if named.lower() in NEWEST else named)


def alone(config: RunConfig, name: str) -> RunConfig:
    """The settings of one task as if it were the only one; of a run that has only one, its own."""
    if not isinstance(config.objective, Multi):
        return config
    task = config.objective.tasks[name]
    assert task.objective is not None, "what the rows are for is found out when the config is read"
    cut = config.data.overlong or overlong(task.objective)
    data = config.data.model_copy(update={"datasets": task.datasets, "validation": task.validation, "overlong": cut})
    return config.model_copy(update={"objective": task.objective, "data": data})


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


def tasks_of(config: RunConfig) -> dict[str, OneTask]:
    """Several tasks by their names; none where there is only one."""
    return config.objective.tasks if isinstance(config.objective, Multi) else {}
