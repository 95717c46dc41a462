"""Training in stages: one run after the other, each on the model that the one before has made.

    <output_dir>/v<N>-<time>/          config.yaml, stages.json, forgetting.json, report.md
    <output_dir>/v<N>-<time>/<n>-<stage>/v<M>-<time>/       the run of each stage, as any other

Each stage is also judged, before and after, on the sets of all stages before it that have the same objective.
stages.json names what is finished: a sequence that is taken up again goes on behind it, inside a stage where that has a
checkpoint.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from luthier.base.config import read_yaml, to_yaml
from luthier.base.console import Console
from luthier.base.errors import ConfigError, Stopped
from luthier.base.markdown import markdown_table
from luthier.base.rundir import RunDir, runs_in, write_atomic
from luthier.data.sources import files_of, parse_spec
from luthier.engine.checkpoint import Checkpoints
from luthier.engine.mesh import open_mesh
from luthier.model import methods
from luthier.model.config import ModelConfig
from luthier.model.heads import Head, learned_head
from luthier.model.load import load_model, load_tokenizer
from luthier.model.method import Adapting
from luthier.objectives.config import Multi
from luthier.run.config import RunConfig, place_to_resume, stage_of
from luthier.run.resolve import resolve, trains_further
from luthier.run.resume import refuse_changes
from luthier.run.retain import FILE
from luthier.run.specialist import KINDS
from luthier.run.train import train
from luthier.run.usage import STAGES


@dataclass(frozen=True, slots=True)
class Finished:
    """What a stage has left: its run, and the checkpoint that the next one starts from."""

    run: Path
    artefact: Path


def train_stages(config: RunConfig, console: Console) -> Path:
    """Train all stages that are not finished and return the directory of the sequence.

    Raises:
        ConfigError, DataError: of a stage, before its first step.
        Stopped: someone asked for it; everything is saved and can be resumed.
    """
    config = resolve(config)
    _look_for_files(config)
    with open_mesh(config.device) as mesh, ExitStack() as stack:
        leads = mesh.leads
        held = _open(config) if leads else None
        if held is not None:
            stack.callback(held.close)
        folder = Path(mesh.share(str(held.path if held else "")))
        voice = console if leads else Console(quiet=True)
        finished = _finished(folder)
        for number, name in enumerate(config.stages):
            if name in finished:
                continue
            voice.say(f"Stage {number + 1} of {len(config.stages)}: {name}", style="bold")
            try:
                run = train(_stage(config, folder, name, finished, leads=leads), console)
            except Stopped:
                words = ["luthier", "train", str(folder / "config.yaml"), "--resume_from_checkpoint", str(folder)]
                voice.say(f"Go on with all stages:\n  {shlex.join(words)}")
                raise
            finished[name] = Finished(run, _artefact(run))
            if leads:
                _write(folder, config, finished, voice)
    return folder


def _look_for_files(config: RunConfig) -> None:
    """Raises DataError where a set of any stage is not there, before hours go into the stages in front of it."""
    for name in config.stages:
        stage = stage_of(config, name)
        tasks = stage.objective.tasks.values() if isinstance(stage.objective, Multi) else ()
        of_tasks = [text for task in tasks for text in (*task.datasets, *task.validation)]
        data = stage.data
        for text in (*data.datasets, *data.validation, *data.replay, *stage.retain.general, *of_tasks):
            spec = parse_spec(text, data.hub)
            if spec.kind == "local":
                files_of(spec)


def _open(config: RunConfig) -> RunDir:
    """The directory of the sequence: a new one, or the one to go on in.

    Raises:
        ConfigError: there is nothing to go on with, or the settings are no longer the same.
    """
    path = place_to_resume(config)
    if path is None:
        opened = RunDir.create(Path(config.output_dir))
        opened.write_text("config.yaml", to_yaml(config))
        opened.write_json(STAGES, {})
        return opened
    runs = runs_in(path)
    found = next((run for run in (path, *reversed(runs)) if (run / STAGES).exists()), None)
    if found is None:
        fix = "Give the directory that holds stages.json, or start without resuming"
        raise ConfigError("there are no stages to go on with", where=str(path), code="no_checkpoint", fix=fix)
    refuse_changes(read_yaml(found / "config.yaml"), config, {}, {})
    return RunDir.reopen(found)


def _stage(config: RunConfig, folder: Path, name: str, finished: Mapping[str, Finished], *, leads: bool) -> RunConfig:
    """The settings of a stage's run: its model is what the stage before has left."""
    stage = stage_of(config, name)
    number = list(config.stages).index(name)
    place = folder / f"{number + 1:02d}-{name}"
    before = list(config.stages)[:number]
    model, retain = stage.model, stage.retain
    if before:
        last = finished[before[-1]]
        model = _carried(stage_of(config, before[-1]), stage, last, place / "base", leads=leads)
        sets = [name for earlier in before for name in _judged_on(stage_of(config, earlier), stage)]
        retain = retain.model_copy(update={"general": tuple(dict.fromkeys((*sets, *retain.general)))})
    resume = str(place) if any(place.glob("v*/checkpoints/LATEST")) else None
    return stage.model_copy(
        update={
            "model": model,
            "retain": retain,
            "output_dir": str(place),
            "save": stage.save.model_copy(update={"resume": resume}),
        }
    )


def _judged_on(earlier: RunConfig, stage: RunConfig) -> tuple[str, ...]:
    """The sets of an earlier stage that a later one is judged on: those that tell most of what it learned."""
    if earlier.objective.type != stage.objective.type or isinstance(stage.objective, Multi):
        return ()
    return earlier.data.validation or earlier.data.datasets


def _carried(earlier: RunConfig, stage: RunConfig, last: Finished, place: Path, *, leads: bool) -> ModelConfig:
    """The model that a stage starts from: the checkpoint before, itself, as an adapter to train further, or merged."""
    if not isinstance(earlier.method, Adapting):
        return stage.model.model_copy(update={"path": str(last.artefact), "adapters": (), "revision": None})
    ran = RunConfig.model_validate(read_yaml(last.run / "config.yaml"))
    over = (*ran.model.adapters[:-1], str(last.artefact))
    own = {"path": ran.model.path, "hub": ran.model.hub, "revision": ran.model.revision, "adapters": over}
    if trains_further(earlier, stage):
        return stage.model.model_copy(update=own)
    if leads and not place.exists():
        _merge(stage.model.model_copy(update=own), earlier.objective.type, place)
    return stage.model.model_copy(update={"path": str(place), "adapters": (), "revision": None})


def _merge(model: ModelConfig, task: str, place: Path) -> None:
    """Write the model with its adapters inside, whole or not at all."""
    making = place.with_name(f".{place.name}")
    shutil.rmtree(making, ignore_errors=True)
    tokenizer = load_tokenizer(model.model_copy(update={"path": model.adapters[-1], "revision": None}))
    head = learned_head(model) or Head(KINDS.get(task, "causal"))
    live = load_model(model, torch.device("cpu"), tokenizer=tokenizer, trained=False, head=head)
    methods.attach(live, model.adapters)
    methods.merge(live, making)
    making.rename(place)


def _artefact(run: Path) -> Path:
    """The checkpoint that is used: the best one, else the last."""
    checkpoints = Checkpoints(run / "checkpoints", None)
    found = checkpoints.named("BEST") or checkpoints.named("LATEST")
    assert found is not None, "a run that has ended has a checkpoint"
    return found


def _finished(folder: Path) -> dict[str, Finished]:
    stored: dict[str, dict[str, str]] = orjson.loads((folder / STAGES).read_bytes())
    return {name: Finished(Path(left["run"]), Path(left["artefact"])) for name, left in stored.items()}


def _write(folder: Path, config: RunConfig, finished: Mapping[str, Finished], console: Console) -> None:
    """Write down that a stage is finished, and what it has done to the sets of those before it."""
    rows = forgotten(finished)
    write_atomic(folder / "forgetting.json", orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    (folder / "report.md").write_text(_report(folder, config, finished, rows), encoding="utf-8")
    stored = {name: {"run": str(left.run), "artefact": str(left.artefact)} for name, left in finished.items()}
    write_atomic(folder / STAGES, orjson.dumps(stored, option=orjson.OPT_INDENT_2))
    if rows:
        console.table("Sets of earlier stages", _shown(rows, short=True))


def forgotten(finished: Mapping[str, Finished]) -> list[dict[str, Any]]:
    """How the score of each earlier set went from stage to stage.

    Returns:
        `set`, `metric`, and `scores` by the stage after which they were found, the first when the set had been learned.
    """
    scores: dict[tuple[str, str], dict[str, float]] = {}
    names = list(finished)
    for number, name in enumerate(names[1:], 1):
        file = finished[name].run / FILE
        changes: list[dict[str, Any]] = orjson.loads(file.read_bytes())["changes"] if file.exists() else []
        for change in changes:
            found = scores.setdefault((change["set"], change["metric"]), {names[number - 1]: change["before"]})
            found[name] = change["after"]
    return [{"set": name, "metric": metric, "scores": found} for (name, metric), found in scores.items()]


def _shown(rows: list[dict[str, Any]], *, short: bool) -> list[dict[str, str]]:
    """One row for each number: when it had just been learned, and after each later stage."""
    return [
        {
            "set": Path(row["set"]).name if short else row["set"],
            "metric": row["metric"].replace("_", " "),
            "scores": "  ".join(f"{stage} {score:.4g}" for stage, score in row["scores"].items()),
            "change": f"{list(row['scores'].values())[-1] - next(iter(row['scores'].values())):+.4g}",
        }
        for row in rows
    ]


def _report(folder: Path, config: RunConfig, finished: Mapping[str, Finished], rows: list[dict[str, Any]]) -> str:
    done = f"{len(finished)} of {len(config.stages)} stages finished"
    lines = [f"# {folder.name}: {done}", "", "## Stages", ""]
    lines += markdown_table(
        ("stage", "learned", "report", "result"),
        [
            (
                name,
                stage_of(config, name).objective.type,
                f"[{left.run.name}]({left.run.relative_to(folder)}/report.md)",
                f"`{left.artefact}`",
            )
            for name, left in finished.items()
        ],
    )
    if rows:
        shown = _shown(rows, short=False)
        lines += [
            "",
            "## What was forgotten",
            "",
            "On the sets of each stage, when it had just been learned and later:",
            "",
        ]
        lines += markdown_table(list(shown[0]), [list(row.values()) for row in shown])
    return "\n".join(lines) + "\n"
