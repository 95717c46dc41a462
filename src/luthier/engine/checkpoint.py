"""Checkpoints that are whole or absent.

    checkpoints/step-00000100/   artefact files, trained.safetensors, optimizer.safetensors, state.json, MANIFEST.json;
                                 ema.safetensors and method.safetensors where there is such a thing
    checkpoints/LATEST, BEST     the name of a verified directory

A checkpoint is written in a staging directory, every file hashed into MANIFEST.json and fsynced, renamed, and only
then named by LATEST.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier.base.errors import ConfigError
from luthier.base.rundir import write_atomic
from luthier.base.sealed import published, set_aside, verify
from luthier.model.lending import Whole
from luthier.model.sharding import held, part
from luthier.model.tensorfile import write_tensors

STATE, TRAINED, OPTIMIZER, EMA = "state.json", "trained.safetensors", "optimizer.safetensors", "ema.safetensors"
METHOD = "method.safetensors"

Artefact = Callable[[Path, Whole], None]
"""Writes the files people use (adapter or model) into a folder, with what it is given to make of each weight."""


@dataclass(slots=True)
class State:
    """Everything a run needs besides tensors to go on as if it had never stopped.

    Random numbers need no state: each step seeds itself from (seed, step, rank).
    """

    step: int = 0
    epoch: int = 0
    consumed: int = 0
    tokens: int = 0
    trained: float = 0.0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Evaluations since the best one."""
    skipped: int = 0
    """Non-finite steps in a row."""
    rolled_back: bool = False
    """Whether the one return to a good checkpoint has been used."""
    too_big: int | None = None
    """Tokens of a micro-batch that did not fit into memory; half as many are used instead."""
    too_big_to_judge: int | None = None
    """The same for evaluation."""
    fingerprints: dict[str, str] | None = None
    """Hashes of what may not change on resume: data, model."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """The exact tensors of a checkpoint, by name."""

    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    method: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What the method remembers from step to step."""

    def files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file."""
        return {TRAINED: self.trained, OPTIMIZER: self.optimizer, EMA: self.ema, METHOD: self.method}

    def used(self, whole: Whole) -> Whole:
        """What people use of a weight: its average, where there is one.  Training goes on from the live one."""
        averages = {held(self.trained[name]).data_ptr(): average for name, average in self.ema.items()}
        return lambda weight: whole(averages.get(held(weight).data_ptr(), weight))


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `<run>/checkpoints`.
        limit: how many to keep; the latest and the best are kept in any case.  None keeps all.
    """

    def __init__(self, folder: Path, limit: int | None):
        self.folder, self.limit = folder, limit

    def save(
        self,
        state: State,
        tensors: Tensors,
        artefact: Artefact,
        *,
        best: bool,
        whole: Whole = Tensor.detach,
    ) -> Path:
        """Publish a checkpoint.

        Args:
            whole: makes a whole tensor of one that is spread over processes.

        Raises:
            RunError: nothing was published and everything published before is untouched.
        """
        final = self.path(state.step)
        staging = self.folder / f".staging-{state.step:08d}"
        with published(final, staging) as hashes:
            artefact(staging, tensors.used(whole))
            for name, named in tensors.files().items():
                if named:
                    hashes[name] = write_tensors(staging / name, named, whole)
            (staging / STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
        write_atomic(self.folder / "LATEST", final.name.encode())
        if best:
            write_atomic(self.folder / "BEST", final.name.encode())
        self._rotate()
        return final

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies or would lie."""
        return self.folder / f"step-{step:08d}"

    def all(self) -> list[Path]:
        """Published checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".corrupt" and path.is_dir())

    def named(self, pointer: str) -> Path | None:
        """The directory LATEST or BEST points at, always one of this run's."""
        file = self.folder / pointer
        return self.folder / Path(file.read_text(encoding="utf-8").strip()).name if file.exists() else None

    def latest(self, report: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that verifies.  Broken ones are renamed to `.corrupt` and reported."""
        for path in reversed(self.all()):
            fault = verify(path)
            if fault is None:
                return path
            report(set_aside(path, fault))
        return None

    def clean(self) -> None:
        """Remove what a killed save left behind."""
        for path in self.folder.glob(".staging-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _rotate(self) -> None:
        if self.limit is None:
            return
        keep = {self.named("LATEST"), self.named("BEST")}
        published = self.all()
        for path in published[: -self.limit]:
            if path not in keep:
                # Renamed first, so that a kill in between never leaves half a checkpoint under a published name.
                doomed = self.folder / f".staging-old-{path.name}"
                path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def read(path: Path) -> tuple[State, Tensors]:
    """Take back what `save` wrote.

    Raises:
        ConfigError: the directory is not a checkpoint or does not verify.
    """
    fault = verify(path)
    if fault is not None:
        raise ConfigError(
            f"this checkpoint cannot be resumed: {fault}",
            where=str(path),
            code="corrupt_checkpoint",
            fix="Give the run directory instead to use its last good checkpoint",
        )
    state = State(**json.loads((path / STATE).read_text(encoding="utf-8")))
    return state, Tensors(*(_tensors(path / name) for name in (TRAINED, OPTIMIZER, EMA, METHOD)))


def put(named: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into live ones of the same names, exactly; of sharded ones, this process's part."""
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(part(values[name], tensor))


def _tensors(file: Path) -> dict[str, Tensor]:
    return load_file(file) if file.exists() else {}
