"""Which objective a run has, when nobody said: what the rows of its first set are evidently for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.base.records import Task
from luthier.data.config import DataConfig
from luthier.objectives.config import Embed, Multi, One, SeqCls, Sft, TokenCls
from luthier.run.config import RunConfig, stage_of

PICKED: dict[Task, type[SeqCls | TokenCls | Embed]] = {
    "classification": SeqCls,
    "tagging": TokenCls,
    "similarity": Embed,
}
"""The objective for rows that are evidently no language modelling; others are told by the data's own checks."""


def picked(objective: Multi, data: DataConfig) -> Multi:
    """Several tasks, each with the objective that its first rows are for where nobody said another."""
    tasks = {
        name: task.model_copy(
            update={"objective": task.objective or pick(data.model_copy(update={"datasets": task.datasets}))}
        )
        for name, task in objective.tasks.items()
    }
    return objective.model_copy(update={"tasks": tasks})


def picked_stages(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The stages, each with the objective that its first rows are for where nobody said another."""
    found: dict[str, dict[str, Any]] = {}
    for name, own in config.stages.items():
        data = stage_of(config, name).data
        known = "objective" in own or not data.datasets
        found[name] = own if known else {**own, "objective": {"type": pick(data).type}}
    return found


def pick(data: DataConfig) -> One:
    """The objective that the first rows are for; sft where they give nothing away, or are not on this machine."""
    name = data.datasets[0]
    paths = name, name.rpartition("#")[0], name.rpartition(":")[0]
    if not any(Path(path).expanduser().exists() for path in paths if path):
        return Sft()
    # Imported here: reading data takes libraries that are slow to import.
    from luthier.data.survey import evident_task

    return PICKED.get(evident_task(data), Sft)()
