"""Whether there is room on the disk for the checkpoints of a run, asked before its first step."""

from __future__ import annotations

import math
import shutil

from luthier.base.errors import RunError
from luthier.base.sizes import told
from luthier.engine.trainer import Trainer
from luthier.model.load import Model
from luthier.run.forecast.disk import least_bytes
from luthier.run.parts import Run


def check_disk(run: Run, model: Model, trainer: Trainer) -> None:
    """Warn where not all checkpoints that are kept at a time have room.

    Raises:
        RunError: `disk_full`, on all processes, where not even one has.
    """
    free = int(run.mesh.share(str(shutil.disk_usage(run.directory.path).free) if run.mesh.leads else ""))
    one, count = least_bytes(model, run.config), _at_a_time(trainer)
    here = f"there are {told(free)} left in {run.config.output_dir}"
    if count and one > free:
        raise RunError(
            f"a checkpoint of this training takes {told(one)}, and {here}",
            code="disk_full",
            fix="Free some space, or give another --output_dir",
        )
    if model.adapted:  # what people use of them takes about as much as what the run goes on with
        one += sum(4 * weight.numel() for weight in model.trained().values())
    if one * count > free:
        kept = run.config.save.total_limit
        fewer = "" if kept == 1 else f", or keep fewer: --save_total_limit {1 if kept else 2}"
        run.console.warn(
            f"up to {count} checkpoints of {told(one)} lie side by side, and {here}; one that has no room is "
            f"not written, and training goes on. Free some space{fewer}"
        )


def _at_a_time(trainer: Trainer) -> int:
    """Checkpoints still to come that lie side by side then: those kept, the best, and the one being written."""
    settings, store = trainer.settings, trainer.checkpoints
    left = max(0, settings.total_steps - trainer.state.step)
    coming = math.ceil(left / settings.save.every) if settings.save.every else min(left, 1)
    if store.limit is None:
        return coming
    most = store.limit + 1 + (trainer.data.validation is not None)
    return min(coming, max(1, most - len(store.all())))
