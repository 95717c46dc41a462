"""A search that has been checked: what its trials are, where they lie, and on which devices they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.base.config import Tree
from luthier.base.errors import ConfigError
from luthier.run.config import RunConfig
from luthier.run.search.space import Dimension, Direction, SearchConfig, with_values

TRIALS = "trials"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A search that has been checked."""

    tree: Tree
    """Settings of the run that are the same in every trial."""
    settings: SearchConfig
    dimensions: Sequence[Dimension]
    direction: Direction
    config: RunConfig
    """The run with the first of everything that is tried."""
    folder: Path

    @property
    def seed(self) -> int:
        """Seed of what is tried."""
        return self.config.seed if self.settings.seed is None else self.settings.seed

    @property
    def metric(self) -> str:
        """The metric in the engine's words."""
        return self.settings.metric.removeprefix("eval_")

    def trial_folder(self, number: int) -> Path:
        """Where a trial lies; they are numbered from 1."""
        return self.folder / TRIALS / f"{number + 1:04d}"

    def config_of(self, values: Mapping[str, Any], place: Path) -> RunConfig:
        """The settings of a trial: the checkpoint that it keeps is the one that is best by the search's metric."""
        config = with_values(self.tree, values)
        judged = {"metric": self.metric, "higher_is_better": self.direction == "maximize"}
        return config.model_copy(
            update={
                "output_dir": str(place),
                "eval": config.eval.model_copy(update=judged),
                "save": config.save.model_copy(update={"total_limit": 1}),
            }
        )


def places(settings: SearchConfig, config: RunConfig, environ: Mapping[str, str]) -> list[str | None]:
    """A place for each trial at the same time: the device it alone sees, or None where there is nothing to choose.

    Raises:
        ConfigError: trials side by side, of which each takes all devices.
    """
    if environ.get("NPROC_PER_NODE", "1") != "1":
        if (settings.parallel or 1) > 1:
            what = "each trial takes all devices, so they are trained one after the other"
            raise ConfigError(what, where="--parallel, NPROC_PER_NODE", fix="Leave one of them out")
        return [None]
    devices = _devices(environ) if config.device != "cpu" else []
    count = settings.parallel or max(1, len(devices))
    return [devices[number % len(devices)] if devices else None for number in range(count)]


def _devices(environ: Mapping[str, str]) -> list[str]:
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device.strip() not in ("", "-1")]
    import torch  # the search itself needs it for nothing else

    return [str(number) for number in range(torch.cuda.device_count())]
