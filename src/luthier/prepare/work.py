"""One verb from beginning to end: open the rows, do the work, write rows and report, or leave everything as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.base.rundir import write_atomic
from luthier.data.textfile import cache_root
from luthier.prepare.config import ReadConfig, VerbConfig
from luthier.prepare.engine import Engine
from luthier.prepare.page import page
from luthier.prepare.places import Places
from luthier.prepare.report import Finished, to_bytes
from luthier.prepare.stage import Stage
from luthier.prepare.verb import PARTS, Job, Verb


def do(
    verb: Verb,
    config: VerbConfig,
    read: ReadConfig,
    inputs: Sequence[str],
    made: Places,
    console: Console,
    *,
    tools: Mapping[str, Callable[..., Any]] | None = None,
) -> Finished:
    """Run a verb on data sets.

    Args:
        tools: callables that the verb asks for by name.

    Raises:
        DataError: the rows cannot be read or used; nothing has been written then.
        ConfigError, MissingExtra: settings that cannot work.
        RunError: code `disk_full` or `cannot_write`.
    """
    if not inputs:
        raise ConfigError("no data set was named", where=verb.name, fix=f"luthier data {verb.name} FILE ...")
    with scratch_folder(read) as scratch, Engine(read.runner, read.workers, read.ray_address) as engine:
        job = Job(read, console, engine, scratch, tools or {})
        stage = Stage(verb, config, job, job.open(inputs), made, inputs)
        finished = stage.run()
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
        rows = "1 row could not be used and was" if lost == 1 else f"{lost:,} rows could not be used and were"
        console.warn(f"{rows} left out; {where}")
    faulty = finished.facts.faulty.counts
    if faulty:
        for code, n in faulty.items():
            first = next(iter(finished.facts.faulty.examples.get(code, ())), None)
            shown = f"; the first: {first['file']}:{first['line']}: {first['message']}" if first else ""
            console.warn(f"{code}: {n:,} {'row that was' if n == 1 else 'rows that were'} kept{shown}")
    for path in _of_another_split(made.outputs):
        console.warn(f"{path} was there before: it is no part of this split, and its rows may stand in the others")
    say_report(made, console)


def _of_another_split(outputs: Mapping[str, Path]) -> list[Path]:
    """Files that lie beside parts of a split as if they belonged to it."""
    part, path = next(iter(outputs.items()), ("", Path()))
    if not part:
        return []
    begins = path.name.removesuffix(f"{part}{path.suffix}")
    others = [path.with_name(f"{begins}{name}{path.suffix}") for name in PARTS if name not in outputs]
    return [other for other in others if other.exists()]


def say_report(made: Places, console: Console) -> None:
    """Tell a person where the report lies, if there is one."""
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
                shutil.rmtree(old)
        made = tempfile.TemporaryDirectory(dir=root, prefix=f"{os.getpid()}-", ignore_cleanup_errors=True)
    except OSError as error:
        fix = "Choose another place with --cache_dir or $LUTHIER_CACHE"
        what = f"the cache cannot be written: {error.strerror}"
        raise DataError(what, where=str(root), fix=fix, code="cache_unwritable") from error
    with made as folder:
        yield Path(folder)
