"""Verbs one after the other, from one file; every step is kept under the hash of all that went into it.

    inputs: [raw.csv, more.jsonl]
    output: train.jsonl
    report: report.json
    seed: 42
    steps:
      - dedup: {exact: true}
      - dedup: {near: true, threshold: 0.8}
      - split: {ratio: [0.9, 0.05, 0.05]}
      - decontaminate: {against: [benchmark.jsonl], only: train}

A step works on what the step before it wrote.  Behind a `split` there are several sets; a step works on each of them,
or on the ones that `only` names.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from luthier import __version__
from luthier.base.config import validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.base.rundir import fsync_dir, storage_error, write_atomic
from luthier.base.sealed import sha256_of
from luthier.data.sources import files_of, open_rows, parse_spec
from luthier.data.textfile import cache_root
from luthier.prepare.config import ReadConfig, VerbConfig
from luthier.prepare.engine import Engine
from luthier.prepare.origins import Origins
from luthier.prepare.places import Places, plain_files, read_by
from luthier.prepare.report import Finished, to_bytes
from luthier.prepare.stage import Handover, Stage
from luthier.prepare.steps import RecipeConfig, Step, checked, files_named, names_behind
from luthier.prepare.verb import Job, Verb
from luthier.prepare.work import say, say_report, scratch_folder, write_report
from luthier.prepare.write import part_paths, refuse_overwriting, target, write_rows

_FORMAT = 1
"""Of cached steps; another number never reads these."""


@dataclass(frozen=True)
class _Set:
    """Rows between two steps."""

    datasets: tuple[str, ...]
    """What they are read from: the recipe's inputs, or one file of a cached step."""
    name: str
    """What reports call them."""
    identity: str
    """Hash of what they are."""
    rows: Path | None = None
    """The file of a cached step."""


@dataclass
class Run:
    """What a recipe made."""

    outputs: dict[str, Path] = field(default_factory=dict[str, Path])
    """Files written, by the name of the set ("" when there is one)."""
    done: int = 0
    """Steps that were worked on, each set counted; the others were in the cache."""
    cached: int = 0
    made: set[Path] = field(default_factory=set[Path])
    """Folders of the cache that were made."""


ToolMaker = Callable[[Verb, VerbConfig], Mapping[str, Callable[..., Any]]]
"""Makes the callables a verb asks for of its settings."""


def run(recipe: RecipeConfig, console: Console, tools: ToolMaker | None = None) -> Run:
    """Run a recipe, taking from the cache what is there.

    Raises:
        ConfigError: a step that cannot work; found before anything is read.
        DataError, RunError: as the verbs; finished steps are kept.
    """
    steps = [checked(number, step) for number, step in enumerate(recipe.steps, 1)]
    if not steps:
        fix = "Write for example: steps: [{dedup: {exact: true}}]"
        raise ConfigError("the recipe has no steps", where="steps", fix=fix)
    if not recipe.inputs:
        raise ConfigError("the recipe names no data set", where="inputs", fix="Write for example: inputs: [my.jsonl]")
    names = names_behind(steps)
    outputs = part_paths(recipe.output, names) if recipe.output else {}
    report = target(recipe.report, "--report", (".json",)) if recipe.report else None
    made = Places(outputs, report)
    specs = [parse_spec(text, recipe.hub) for text in recipe.inputs]
    files = [path for spec in specs if spec.kind == "local" for path in files_of(spec)]
    refuse_overwriting(files, [path for path in (*outputs.values(), made.report, made.page) if path])
    for step in steps:
        refuse_overwriting(files_named(step, recipe), outputs.values())
    result = Run()
    sets = {
        "": _Set(recipe.inputs, ", ".join(recipe.inputs), _hash(*(_content(text, recipe) for text in recipe.inputs)))
    }
    reports: list[Mapping[str, Any]] = []
    for step in steps:
        after: dict[str, _Set] = {}
        for name, rows in sets.items():
            if step.only and name not in step.only:
                after[name] = rows
                continue
            folder = _do(steps[step.number - 1 :], name, rows, recipe, console, result, tools)
            reports.append(orjson.loads((folder / "report.json").read_bytes()))
            after.update(_after(step, name, rows, folder))
        sets = after
    for name, path in outputs.items():
        rows = sets[name].rows
        assert rows is not None, "a recipe has a step, and the last one that writes has written"
        write_rows(rows, path)
        result.outputs[name] = path
    write_report(made, [Finished.from_json(shown) for shown in reports])
    say_report(made, console)
    return result


def _do(
    steps: Sequence[Step],
    name: str,
    rows: _Set,
    recipe: RecipeConfig,
    console: Console,
    result: Run,
    tools: ToolMaker | None,
) -> Path:
    """The folder of a step's result for one set: from the cache, or made now, together with steps behind it.

    Args:
        steps: the step, and all behind it.
    """
    folder = _folder(steps[0], rows, recipe)
    if folder in result.made:
        return folder
    if (folder / "report.json").is_file():
        console.say(f"{_title(steps[0], name)}: in the cache")
        result.cached += 1
        return folder
    if rows.rows is not None and not rows.rows.stat().st_size:
        raise DataError("no row can be used", where=rows.name, code="no_rows")
    chain = _chain(steps, name, rows, recipe)
    shared = " in one pass" if len(chain) > 1 else ""
    console.say(f"{', '.join(_title(step, name) for step, _, _ in chain)}{shared}")
    try:
        with Engine(recipe.runner, recipe.workers, recipe.ray_address) as engine, ExitStack() as stack:
            stages: list[Stage] = []
            for number, (step, before, to) in enumerate(chain):
                feed = Handover(stages[-1], _output(chain[number - 1][2]), before.name) if stages else None
                stages.append(_stage(step, before, to, feed, recipe, console, engine, stack, result, tools))
            for stage in reversed(stages):  # the last one asks those before it for their rows
                if stage.finished is None:
                    stage.run()
    except OSError as error:
        raise storage_error(error, folder) from error
    return folder


def _title(step: Step, name: str) -> str:
    return f"{step.name}{f' of {name}' if name else ''}"


def _output(folder: Path, part: str = "") -> Path:
    return folder / f"{part or 'rows'}.jsonl"


def _chain(steps: Sequence[Step], name: str, rows: _Set, recipe: RecipeConfig) -> list[tuple[Step, _Set, Path]]:
    """The first step and those behind it that can share its pass, with what each reads and the folder it makes."""
    chain: list[tuple[Step, _Set, Path]] = []
    for step in steps:
        if chain and step.only and name not in step.only:
            continue
        folder = _folder(step, rows, recipe)
        if chain and (not step.verb.flows or (folder / "report.json").is_file()):
            break
        chain.append((step, rows, folder))
        if not step.verb.flows:
            break
        rows = _after(step, name, rows, folder)[name]
    return chain


def _folder(step: Step, rows: _Set, recipe: RecipeConfig) -> Path:
    """Where a step's result for a set is kept: under the hash of all that goes into it."""
    wishes = recipe.model_dump(mode="json", include={"bad_rows", "max_row_bytes", "min_rows", "seed"})
    columns = recipe.columns if rows.rows is None else {}
    further = [_content(text, recipe) for text in read_by(step.verb, step.config)]
    further += [_digest(path) for path in plain_files(step.verb, step.config)]
    settings = step.config.model_dump(mode="json")
    versions = [_FORMAT, __version__, step.verb.name, step.verb.version]
    key = _hash(rows.identity, rows.name, orjson.dumps([versions, settings, wishes, columns, further]).decode())
    return cache_root(recipe.data()) / "prepare" / key[:2] / key


def _stage(
    step: Step,
    rows: _Set,
    folder: Path,
    feed: Handover | None,
    recipe: RecipeConfig,
    console: Console,
    engine: Engine,
    stack: ExitStack,
    result: Run,
    tools: ToolMaker | None,
) -> Stage:
    """A step ready to run; its folder gets its name when it has finished."""
    columns = recipe.columns if rows.rows is None else {}
    read = validate(ReadConfig, {**{key: getattr(recipe, key) for key in ReadConfig.model_fields}, "columns": columns})
    folder.parent.mkdir(parents=True, exist_ok=True)
    holder = stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-"))
    staged = Path(holder) / "step"
    staged.mkdir()
    parts = step.verb.parts(step.config) if step.verb.writes else ()
    made = Places({part: _output(staged, part) for part in parts}, rejected=staged / "rejected.jsonl")
    origins = {} if rows.rows is None else {rows.datasets[0]: Origins(rows.rows)}
    scratch = stack.enter_context(scratch_folder(read))
    given = tools(step.verb, step.config) if tools else {}
    job = Job(read, console, engine, scratch, given, origins)

    def finish(finished: Finished) -> None:
        write_atomic(staged / "report.json", to_bytes(finished.as_json()))
        fsync_dir(staged)
        if not folder.exists():
            staged.rename(folder)
        result.made.add(folder)
        result.done += 1
        say(finished, Places(rejected=folder / "rejected.jsonl"), console)

    frame = job.follow(feed) if feed else job.open(rows.datasets)
    return Stage(step.verb, step.config, job, frame, made, [rows.name], finish)


def _after(step: Step, name: str, rows: _Set, folder: Path) -> dict[str, _Set]:
    """The sets that a step leaves of one set."""
    if not step.verb.writes:
        return {name: rows}
    after: dict[str, _Set] = {}
    for part in step.verb.parts(step.config):
        path = _output(folder, part)
        shown = part or name
        after[shown] = _Set((str(path),), f"{step.name}{f': {shown}' if shown else ''}", _hash(folder.name, part), path)
    return after


def _content(text: str, recipe: RecipeConfig) -> str:
    """A hash of what a data set holds, under the name it is given."""
    spec = parse_spec(text, recipe.hub)
    if spec.kind != "local":
        return _hash(text, open_rows(spec, recipe.data()).fingerprint)
    return _hash(text, *map(_digest, files_of(spec)))


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_of(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of(path: Path, *_: int) -> str:
    return sha256_of(path)


def _hash(*parts: str) -> str:
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()
