"""A training that cannot fit is refused before its weights are loaded.

Refused is only what no step could do without: weights, gradients, optimizer state and averages.  How much activations
take depends on how they are kept and how a step is cut up, which a run finds out by trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from luthier.base.errors import DoesNotFit, LuthierError
from luthier.model.config import ModelConfig
from luthier.model.folder import model_folder
from luthier.model.method import Gradual
from luthier.model.shadow import shadow
from luthier.objectives.setting import Part
from luthier.run.forecast.demand import Bare, bare_of
from luthier.run.forecast.hardware import GIB, Device, device_named
from luthier.run.forecast.sketch import arithmetic, students_of, without_numbers
from luthier.run.memory import to_try
from luthier.run.parts import Run

_AT_MOST = 12
"""Times the size of its files that a training holds at most: from two bytes a weight to four each of the weight, its
gradient, two numbers of optimizer state and an average, and something over.  What fits even so need not be counted."""


def refuse_what_cannot_fit(run: Run, tokenizer: PreTrainedTokenizerFast, parts: Sequence[Part]) -> None:
    """Count what a run, whose weights' files are there, holds whatever its steps are like.

    Raises:
        DoesNotFit: more than there is room for, with the estimate and what to change.
    """
    device = device_named(str(run.mesh.device), None)
    processes = 1 if device.gpu else run.mesh.world  # those of a CPU share its memory
    room = device.available // processes
    beside = [teacher.config for student, teacher in students_of(parts) if student.config.top_k is None]
    if _AT_MOST * sum(_file_bytes(model_folder(one)) for one in (run.config.model, *beside)) <= room:
        return
    bare = _counted(run, tokenizer, parts, device, beside)
    if bare is None or bare.total <= room:
        return
    kinds = {
        "weights": bare.weights + bare.together,
        "gradients": bare.gradients,
        "optimizer state": bare.optimizer,
        "averages": bare.average,
    }
    told = ", ".join(f"{size / GIB:.1f} of {kind}" for kind, size in kinds.items() if size)
    shared = f" for each of {processes} processes" if processes > 1 else ""
    raise DoesNotFit(
        f"this training holds {bare.total / GIB:.1f} GiB whatever its steps are like ({told}), and {device.name} has "
        f"{room / GIB:.1f} GiB free{shared}",
        where=run.config.model.path,
        fix=to_try(run, "weights"),
    )


def _file_bytes(folder: Path) -> int:
    """Of the weights, as they lie there."""
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))


def _counted(
    run: Run, tokenizer: PreTrainedTokenizerFast, parts: Sequence[Part], device: Device, beside: Sequence[ModelConfig]
) -> Bare | None:
    """None for what cannot be counted without numbers: loading will tell."""
    if isinstance(run.config.method, Gradual):
        return None  # a run may end before all its layers move
    try:
        dtype = arithmetic(run.config.model.dtype, device)
        model, _ = without_numbers(run, tokenizer, dtype, device, parts)
        return bare_of(run, model, [shadow(one, dtype, tokenizer=tokenizer) for one in beside])
    except (LuthierError, RuntimeError, NotImplementedError):
        return None
