"""What settings name and this machine does not have: a dry run tells it, as its recipe may be meant for another one."""

from __future__ import annotations

from pathlib import Path

from luthier.model.folder import local_folder, looks_local
from luthier.objectives.config import Distill
from luthier.run.config import NEWEST, RunConfig, place_to_resume, stage_of, tasks_of


def absent(config: RunConfig) -> list[str]:
    """A line for each file and folder that is not here.  Names that a hub may know are left to it."""
    found = _named(config)
    for name in config.stages:
        found |= _named(stage_of(config, name))
    return [f"{flag} {name}: there is no such {kind} on this machine" for flag, name, kind in sorted(found)]


def lies_here(dataset: str) -> bool:
    """Whether a data set, written as settings write it, is a file or folder of this machine."""
    paths = dataset, dataset.rpartition("#")[0], dataset.rpartition(":")[0]
    return any(Path(path).expanduser().exists() for path in paths if path)


def _named(config: RunConfig) -> set[tuple[str, str, str]]:
    """The flag, the name and the kind of what is missing."""
    models = {"--model": config.model.path}
    if isinstance(config.objective, Distill):
        models["--teacher"] = config.objective.teacher
    tasks = tasks_of(config)
    sets = {
        "--dataset": [*config.data.datasets, *(one for task in tasks.values() for one in task.datasets)],
        "--val_dataset": [*config.data.validation, *(one for task in tasks.values() for one in task.validation)],
        "--replay_dataset": config.data.replay,
        "--general_dataset": config.retain.general,
    }
    return {
        *((flag, name, "folder") for flag, name in models.items() if local_folder(name) is None and looks_local(name)),
        *(("--adapters", name, "folder") for name in config.model.adapters if not Path(name).expanduser().exists()),
        *(("--resume_from_checkpoint", name, "run") for name in _resumed(config)),
        *(
            (flag, name, "file")
            for flag, names in sets.items()
            for name in names
            if _file(name) and not lies_here(name)
        ),
    }


def _resumed(config: RunConfig) -> list[str]:
    """What is resumed, where that is named by a path and nothing is there."""
    named, place = config.save.resume, place_to_resume(config)
    if named is None or place is None or named.lower() in NEWEST or place.expanduser().exists():
        return []
    return [named]


def _file(dataset: str) -> bool:
    """Whether a name is rather a path than a data set of a hub."""
    if dataset.startswith(("hf::", "ms::")):
        return False
    suffix = Path(dataset.partition("#")[0]).suffix
    return looks_local(dataset) or suffix[1:2].isalpha()
