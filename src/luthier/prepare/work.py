"""One verb from beginning to end: open the rows, do the work, write rows and report, or leave everything as it was."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from luthier import __version__
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.base.rundir import write_atomic
from luthier.data.sources import files_of, parse_spec
from luthier.data.textfile import cache_root
from luthier.prepare.config import ReadConfig, VerbConfig
from luthier.prepare.engine import Engine
from luthier.prepare.origins import Origins
from luthier.prepare.page import page
from luthier.prepare.parcel import REMOVED
from luthier.prepare.report import Finished, to_bytes
from luthier.prepare.verb import Job, Verb
from luthier.prepare.write import Writer, part_paths, refuse_overwriting, target


@dataclass(frozen=True)
class Places:
    """Where things go; what is None is not written."""

    outputs: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """By the name of the part."""
    report: Path | None = None
    removed: Path | None = None
    rejected: Path | None = None

    @property
    def page(self) -> Path | None:
        """The page for people, beside the report."""
        return self.report.with_suffix(".html") if self.report else None


def places(
    verb: Verb,
    config: VerbConfig,
    inputs: Sequence[str],
    *,
    output: str | None = None,
    report: str | None = None,
    removed: str | None = None,
    hub: Literal["hf", "ms"] = "hf",
) -> Places:
    """Check where a verb is to write, before anything is read.

    Raises:
        ConfigError: a name that cannot be written, or that would overwrite an input.
        DataError: an input that is not there.
    """
    if output and not verb.writes:
        raise ConfigError(f"{verb.name} writes a report, no rows", where="--output", fix="Give --report FILE.json")
    outputs = part_paths(output, verb.parts(config)) if output else {}
    made = Places(
        outputs=outputs,
        report=target(report, "--report", (".json",)) if report else None,
        removed=target(removed, "--removed", (".jsonl",)) if removed else None,
        rejected=_rejected_path(output, report),
    )
    named = [*outputs.values(), made.report, made.page, made.removed, made.rejected]
    refuse_overwriting(_files(verb, config, inputs, hub), [path for path in named if path])
    return made


def _rejected_path(output: str | None, report: str | None) -> Path | None:
    beside = output or report
    if beside is None:
        return None
    path = Path(beside).expanduser()
    if path.is_dir() or not path.suffix:
        return path / "rejected.jsonl"
    return path.with_suffix(".rejected.jsonl")


def _files(verb: Verb, config: VerbConfig, inputs: Sequence[str], hub: Literal["hf", "ms"]) -> list[Path]:
    """Every local file that is read."""
    found: list[Path] = []
    for text in (*inputs, *read_by(verb, config)):
        spec = parse_spec(text, hub)
        if spec.kind == "local":
            found += files_of(spec)
    return found + plain_files(verb, config)


def read_by(verb: Verb, config: VerbConfig) -> list[str]:
    """The further files and data sets that a verb's settings name."""
    return _named(verb.reads, config)


def plain_files(verb: Verb, config: VerbConfig) -> list[Path]:
    """The plain files that a verb's settings name, those that are there."""
    paths = [Path(name).expanduser() for name in _named(verb.files, config)]
    return [path for path in paths if path.is_file()]


def _named(settings: Sequence[str], config: VerbConfig) -> list[str]:
    found: list[str] = []
    for name in settings:
        value = getattr(config, name)
        found += [value] if isinstance(value, str) else list(value or ())
    return found


def do(
    verb: Verb,
    config: VerbConfig,
    read: ReadConfig,
    inputs: Sequence[str],
    made: Places,
    console: Console,
    *,
    tools: Mapping[str, Callable[..., Any]] | None = None,
    origins: Mapping[str, Origins] | None = None,
    names: Sequence[str] = (),
) -> Finished:
    """Run a verb on data sets.

    Args:
        tools: callables that the verb asks for by name.
        origins: given for a step of a recipe: where the rows of its inputs first came from.  The step then writes the
            origins of its own rows too.
        names: what the report calls the inputs, when not by their paths.

    Raises:
        DataError: the rows cannot be read or used; nothing has been written then.
        ConfigError, MissingExtra: settings that cannot work.
        RunError: code `disk_full` or `cannot_write`.
    """
    if not inputs:
        raise ConfigError("no data set was named", where=verb.name, fix=f"luthier data {verb.name} FILE ...")
    with scratch_folder(read) as scratch, Engine(read.runner, read.workers, read.ray_address) as engine:
        job = Job(read, console, engine, scratch, tools or {}, origins)
        frame = job.open(inputs)
        outcome = verb.run(frame, config, job)
        paths = {**made.outputs, **({REMOVED: made.removed} if made.removed else {})}
        with Writer(verb.parts(config) if verb.writes else (), paths, origins=origins is not None) as writer:
            for parcel in outcome.stream or ():
                writer.write(parcel)
                outcome.report.tally.add(parcel.tally)
            rejected = scratch / "rejected-1.jsonl"
            if not frame.facts.rows:
                raise DataError("no row was read", where=", ".join(inputs), code="no_rows")
            writer.publish()
        if made.rejected and rejected.exists():
            made.rejected.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(made.rejected, rejected.read_bytes())
    settings = config.model_dump(mode="json")
    finished = Finished(
        verb.name, __version__, tuple(names or inputs), settings, read.seed, frame.facts, writer.rows, outcome.report
    )
    write_report(made, [finished])
    return finished


def write_report(made: Places, steps: Sequence[Finished]) -> None:
    """Write the JSON report and the page, when a report is wanted.

    Raises:
        RunError: code `disk_full` or `cannot_write`.
    """
    if made.report is None or made.page is None:
        return
    shown: dict[str, Any] = (
        steps[0].as_json() if len(steps) == 1 else {"verb": "run", "steps": [step.as_json() for step in steps]}
    )
    write_atomic(made.report, to_bytes(shown))
    title = f"Data report: {steps[0].verb}" if len(steps) == 1 else "Data report"
    write_atomic(made.page, page(steps, title).encode())


def say(finished: Finished, made: Places, console: Console) -> None:
    """Tell a person what was done, and where it lies."""
    numbers = finished.headline()
    console.table(finished.verb, [{" ": name, "rows": value} for name, value in numbers.items()])
    for table in finished.report.tables:
        console.table(table.title, table.rows[:20])
    for note in finished.report.notes:
        console.say(note)
    for row in finished.facts.examples[:3]:
        console.say(f"{row['file']}:{row['line']}: {row['message']} [{row['code']}]")
    lost = sum(finished.facts.rejected.values())
    if lost:
        where = f"all in {made.rejected}" if made.rejected else "--output or --report keeps them in a file"
        console.warn(f"{lost} rows could not be used and were left out; {where}")
    faulty = finished.facts.faulty.counts
    if faulty:
        for code, n in faulty.items():
            first = next(iter(finished.facts.faulty.examples.get(code, ())), None)
            shown = f"; the first: {first['file']}:{first['line']}: {first['message']}" if first else ""
            console.warn(f"{code}: {n:,} {'row that was' if n == 1 else 'rows that were'} kept{shown}")
    for name, path in (("Report", made.report), ("Page", made.page)):
        if path:
            console.say(f"{name}: {path}")


@contextmanager
def scratch_folder(read: ReadConfig) -> Generator[Path]:
    """A folder that is gone afterwards; those of processes that died without clearing up are removed first.

    Raises:
        DataError: code `cache_unwritable`.
    """
    root = cache_root(read.data()) / "scratch"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for old in root.iterdir():
            owner = old.name.partition("-")[0]
            if owner.isdigit() and not psutil.pid_exists(int(owner)):
                _remove(old)
        made = tempfile.TemporaryDirectory(dir=root, prefix=f"{os.getpid()}-", ignore_cleanup_errors=True)
    except OSError as error:
        fix = "Choose another place with --cache_dir or $LUTHIER_CACHE"
        what = f"the cache cannot be written: {error.strerror}"
        raise DataError(what, where=str(root), fix=fix, code="cache_unwritable") from error
    with made as folder:
        yield Path(folder)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    folder.rmdir()
