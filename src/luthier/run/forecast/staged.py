"""What a training in stages would need: a plan of each, over the model that the first one starts from."""

from __future__ import annotations

from dataclasses import replace

from luthier.base.console import Console
from luthier.base.errors import LuthierError
from luthier.model.method import Adapting
from luthier.run.config import RunConfig, stage_of
from luthier.run.forecast.forecast import Forecast, forecast
from luthier.run.forecast.hardware import Device
from luthier.run.resolve import resolve, trains_further


def forecast_stages(config: RunConfig, device: Device, devices: int, console: Console) -> dict[str, Forecast]:
    """A plan for each stage, by its name.  A model that a stage leaves has the shapes of the one that it started from.

    Raises:
        LuthierError: as `forecast` does, naming the stage.
    """
    resolve(config)
    found: dict[str, Forecast] = {}
    earlier: RunConfig | None = None
    for name in config.stages:
        stage = stage_of(config, name)
        try:
            plan = forecast(stage, device, devices, console)
        except LuthierError as error:
            error.where = f"stages.{name}: {error.where}" if error.where else f"stages.{name}"
            raise
        found[name] = replace(plan, notes=(*plan.notes, *_of_the_one_before(earlier, stage)))
        earlier = stage
    return found


def _of_the_one_before(earlier: RunConfig | None, stage: RunConfig) -> list[str]:
    """What the plan of a stage leaves out because the one before has not been trained."""
    if earlier is None:
        return []
    notes = ["It is counted over the base, of the same shapes as what the stage before will leave"]
    if isinstance(earlier.method, Adapting) and not trains_further(earlier, stage):
        notes.append("The model with the earlier adapter merged into it is written once, and not counted on the disk")
    return notes
