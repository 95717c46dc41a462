"""Opening what a run made, from its directory or one of its checkpoints alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.base.config import read_yaml, validate
from luthier.base.errors import ConfigError, ModelError
from luthier.base.rundir import runs_in
from luthier.base.sealed import verify
from luthier.engine.checkpoint import Checkpoints
from luthier.model.config import ModelConfig
from luthier.model.folder import adapter_settings
from luthier.run.config import RunConfig
from luthier.run.usage import HEADS, STAGES


@dataclass(frozen=True, slots=True)
class Usable:
    """What to load, where its tokenizer and template lie, and the run that it comes from."""

    model: ModelConfig
    tokenizer: ModelConfig
    trained: RunConfig | None
    """The run's settings; None for what no run of ours has made."""

    @property
    def system(self) -> str | None:
        """The system message it was trained with."""
        return self.trained.data.system if self.trained else None

    @property
    def columns(self) -> Mapping[str, str]:
        """What columns of its rows are called, and what they mean: {theirs: ours}."""
        return self.trained.data.columns if self.trained else {}


def find(model: ModelConfig) -> Usable:
    """Follow a run directory or checkpoint named as model or as last adapter to all it needs.

    What the user named goes before what the run's config.yaml says.  Other models are left as they are.

    Raises:
        ConfigError: the run has no checkpoint, or no model was named and the adapter does not say one.
    """
    if model.path:
        model = model.model_copy(update={"path": str(_one_task(_checkpoint(model.path)))})
    if not model.adapters:
        if not model.path:
            raise ConfigError("no model was named", where="--model", fix="Give a folder or hub id, or --adapters")
        return Usable(model, model, _config(model.path))
    *earlier, last = model.adapters
    folder = _one_task(_checkpoint(last))
    trained = _config(folder)
    if trained is None:
        base = model.path or _base_of(folder)
        model = model.model_copy(update={"path": base, "adapters": (*earlier, str(folder))})
        return Usable(model, model, None)
    if not model.path:
        path = trained.model.path if Path(trained.model.path).is_dir() else _base_of(folder)
        own = {"path": path, "hub": trained.model.hub, "revision": trained.model.revision}
        # With LoRA the last earlier adapter is the one that was trained further: this one takes its place.
        model = model.model_copy(update={**own, "adapters": trained.model.adapters[:-1]})
        earlier = list(model.adapters)
    update = {
        # The adapter has learned over the base as it was held.
        "quant": trained.model.quant if model.quant.method is None else model.quant,
        "adapters": (*earlier, str(folder)),
        "template_args": {**trained.model.template_args, **model.template_args},
        "trust_remote_code": model.trust_remote_code or trained.model.trust_remote_code,
    }
    model = model.model_copy(update=update)
    return Usable(model, model.model_copy(update={"path": str(folder), "revision": None}), trained)


def followed(model: ModelConfig) -> ModelConfig:
    """Runs that are named as model or adapters, replaced by the checkpoints to open; other names stay.

    Raises:
        ConfigError: a run has no checkpoint, or has learned several tasks.
    """
    adapters = tuple(str(_one_task(_checkpoint(one))) for one in model.adapters)
    path = str(_one_task(_checkpoint(model.path))) if model.path else model.path
    return model.model_copy(update={"path": path, "adapters": adapters})


def _checkpoint(named: str) -> Path | str:
    """The folder to open: the best (else latest) checkpoint of a run directory, or of the newest run of an output
    directory; anything else as it was named."""
    path = Path(named).expanduser()
    if (path / STAGES).exists():  # a sequence stands for what its last stage has made
        finished = list(json.loads((path / STAGES).read_text(encoding="utf-8")).values())
        if not finished:
            raise ConfigError("no stage is finished yet", where=named, code="no_checkpoint")
        return Path(finished[-1]["artefact"])
    runs = runs_in(path)
    if runs:  # an output directory stands for its newest run
        return _checkpoint(str(runs[-1]))
    if not (path / "checkpoints").is_dir():
        return named
    checkpoints = Checkpoints(path / "checkpoints", None)
    for pointer in ("BEST", "LATEST"):
        found = checkpoints.named(pointer)
        if found is not None and verify(found) is None:
            return found
    raise ConfigError("this run has no whole checkpoint yet", where=named, code="no_checkpoint")


def _one_task(folder: Path | str) -> Path | str:
    """The folder itself, unless a model for each of several tasks lies in it.  Raises ConfigError."""
    tasks = sorted(place for place in (Path(folder).expanduser() / HEADS).glob("*") if place.is_dir())
    if tasks:
        raise ConfigError(
            "this run has learned several tasks",
            where=str(folder),
            code="several_tasks",
            fix=f"Give the model of one: {', '.join(map(str, tasks))}",
        )
    return folder


def _config(folder: Path | str) -> RunConfig | None:
    """The run's settings beside a checkpoint, if it is one of ours."""
    file = Path(folder).expanduser() / "config.yaml"
    return validate(RunConfig, read_yaml(file)) if file.exists() else None


def _base_of(folder: Path | str) -> str:
    """The base model that an adapter names."""
    place = Path(folder).expanduser()
    if not place.exists():
        raise ModelError("no such adapter or run", where=str(folder), code="no_adapter", fix="Give its folder")
    base = json.loads(adapter_settings(place).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError("names no base model", where=str(folder), fix="Give the base as --model")
    return str(base)
