"""Finding what to resume, and refusing to resume something that is no longer the same run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.base.config import flat, read_yaml
from luthier.base.errors import ConfigError
from luthier.base.rundir import runs_in
from luthier.base.sealed import MANIFEST
from luthier.engine.checkpoint import Checkpoints
from luthier.model import lowbit
from luthier.model.load import Model
from luthier.run.config import RunConfig, place_to_resume

FREE = (
    "output_dir", "device", "log", "save", "eval", "model.path", "model.hub", "data.cache_dir", "data.tokenize_workers",
    "data.loader_workers", "data.hub", "train.micro_batch", "train.accumulation", "train.gradient_checkpointing",
    "train.shard", "train.skip_limit",
)  # fmt: skip
"""Settings that change nothing a step computes; what they stand for is covered by fingerprints where it matters."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A checkpoint to go on from."""

    checkpoint: Path
    newest: bool
    """Whether it is the run's newest one; an older one starts a run directory of its own."""

    @property
    def run(self) -> Path:
        """The run directory it belongs to."""
        return self.checkpoint.parent.parent


def find_resume(config: RunConfig, report: Callable[[str], None]) -> Resume | None:
    """The checkpoint that `save.resume` names: a checkpoint, a run directory, an output directory, or `true`.

    Broken checkpoints of a run are set aside and reported; the last good one is used.

    Raises:
        ConfigError: there is nothing to resume.
    """
    path = place_to_resume(config)
    if path is None:
        return None
    if (path / MANIFEST).exists() or path.name.startswith("step-"):
        run = path.parent.parent
        published = Checkpoints(path.parent, None).all()
        if path not in published:
            raise ConfigError("there is no such checkpoint", where=str(path), code="no_checkpoint", fix=_offer(run))
        return Resume(path, newest=path == published[-1])
    if not path.exists():
        raise ConfigError("no such run or checkpoint", where=str(path), code="no_checkpoint", fix="Give its directory")
    runs = runs_in(path)
    for run in [path] if (path / "checkpoints").is_dir() else reversed(runs):
        good = Checkpoints(run / "checkpoints", None).latest(report)
        if good is not None:
            return Resume(good, newest=True)
    raise ConfigError(
        "there is no checkpoint to resume", where=str(path), code="no_checkpoint", fix="Start without resuming"
    )


def _offer(run: Path) -> str:
    names = [path.name for path in Checkpoints(run / "checkpoints", None).all()]
    return f"This run has {', '.join(names)}" if names else "Give a run directory or one of its checkpoints"


def refuse_changes(
    stored: Mapping[str, Any], config: RunConfig, before: Mapping[str, str], now: Mapping[str, str]
) -> None:
    """Refuse to go on when the run would no longer be the same.

    Args:
        stored: the config the checkpoint was made with.
        before, now: fingerprints of data, model and step size.

    Raises:
        ConfigError: code `changed_run`, one line for each difference that `save.allow_change` does not name.
    """
    old, new = flat(stored), flat(config.model_dump(mode="json"))
    changed = {key: (old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}
    lines = {key: f"{key}: {was!r} -> {is_now!r}" for key, (was, is_now) in changed.items() if not _under(key, FREE)}
    for key, was in before.items():
        if now.get(key) != was:
            lines[key] = f"{key}: not the same as when the checkpoint was made"
    refused = {key: line for key, line in lines.items() if not _under(key, config.save.allow_change)}
    if refused:
        raise ConfigError(
            "this is no longer the run that is being resumed: " + "; ".join(refused.values()),
            where="--resume_from_checkpoint",
            code="changed_run",
            fix=f"Undo the change, or accept it with --allow_change {' '.join(refused)}",
        )


def stored_config(checkpoint: Path) -> dict[str, Any]:
    """The config a checkpoint was made with."""
    return read_yaml(checkpoint / "config.yaml")


def _under(key: str, paths: tuple[str, ...]) -> bool:
    return any(key == path or key.startswith(path + ".") for path in paths)


@torch.no_grad()
def model_fingerprint(model: Model) -> str:
    """Hash over the names, shapes and evenly spaced values of every weight."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, weight in (*model.network.named_parameters(), *lowbit.tensors(model.network)):
        sample = weight.reshape(-1)[:: max(1, weight.numel() // 256)].float().cpu().numpy().tobytes()
        hashed.update(f"{name}{tuple(weight.shape)}".encode() + sample)
    return hashed.hexdigest()
