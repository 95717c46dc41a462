"""What a run's directory holds, read for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

import orjson

from luthier.base.config import read_yaml, validate
from luthier.base.errors import LuthierError
from luthier.base.records import Json
from luthier.base.rundir import Row, RunDir, run_number
from luthier.base.secrets import redact
from luthier.run.config import RunConfig
from luthier.run.state import RunState, tail_rows
from luthier.run.usage import Ending, python_lines, usage
from luthier.run.watch import EVENTS, METRICS
from luthier.studio.children import Child

_EVENTS = 200
"""Events that are shown."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One checkpoint of a run."""

    name: str
    marks: tuple[str, ...]
    """best, latest."""
    bytes: int
    saved: float
    """Seconds since 1970."""


def measured(run: Path) -> list[Row]:
    """All rows of its metrics."""
    return RunDir(run).read_rows(METRICS)


def told(run: Path) -> list[tuple[str, str, str]]:
    """Its last events, the newest first: time, level, message; rows of numbers are left to the curves."""
    rows = [row for row in tail_rows(run / EVENTS, 256 * 1024) if row.get("type") != "metrics"]
    return [
        (_clock(row.get("created_at")), str(row.get("level", "info")), redact(str(row.get("message", ""))))
        for row in reversed(rows[-_EVENTS:])
    ]


def text_of(run: Path, name: str) -> str | None:
    """A text file of the run, without secrets; None when it is not there."""
    try:
        return redact((run / name).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def checkpoints(run: Path) -> list[Kept]:
    """Its checkpoints, the newest first."""
    folder = run / "checkpoints"
    named = {mark: (text_of(folder, mark.upper()) or "").strip() for mark in ("best", "latest")}
    return [
        Kept(
            path.name,
            tuple(mark for mark, name in named.items() if name == path.name),
            sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            path.stat().st_mtime,
        )
        for path in sorted(folder.glob("step-*"), reverse=True)
        if (path / "MANIFEST.json").exists()
    ]


def data_sets(run: Path) -> list[Mapping[str, Json]]:
    """What the data report says of each set: name, use, rows, kept, samples, tokens, trained_tokens."""
    try:
        report = orjson.loads((run / "data_report.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return []
    sets = report.get("sets") if isinstance(report, dict) else None
    return [cast(Mapping[str, Json], one) for one in sets if isinstance(one, dict)] if isinstance(sets, list) else []


def settings_of(run: Path) -> RunConfig | None:
    """Its settings, where they can still be read."""
    try:
        return validate(RunConfig, read_yaml(run / "config.yaml"))
    except (LuthierError, OSError):
        return None


def commands(state: RunState, shown: str) -> tuple[dict[str, str], Sequence[str]]:
    """What can be done with a run: commands by their titles, and lines of Python.

    Args:
        shown: how its directory is named in commands.
    """
    config = settings_of(state.path)
    if config is None:
        return {}, ()
    place = Path(shown)
    best, latest = (_checkpoint(state.path, place, mark) for mark in ("BEST", "LATEST"))
    reason = "finished" if state.phase == "finished" else "stopped"
    found = usage(place, config, Ending(reason, state.step, 0.0, latest, best))
    use = best or latest
    if use is None or config.objective.type == "multi":
        return found, ()
    return found, python_lines(config, use)


def run_of(child: Child, root: Path) -> Path | None:
    """The run that a training command has begun, or goes on with; None before it has."""
    if "--resume_from_checkpoint" in child.words:
        return root / child.words[child.words.index("--resume_from_checkpoint") + 1]
    try:
        settings = read_yaml(child.folder / "recipe.yaml")
    except (LuthierError, OSError):
        return None
    begun = [run for run in (root / str(settings.get("output_dir"))).glob("v*") if _begun(run) >= int(child.since)]
    return min(begun, key=_begun, default=None)


def report_of(child: Child, root: Path) -> Path | None:
    """The report's page of a command of the workshop or of a comparison, once it is there."""
    words = child.words
    if "--report" in words:
        page = root / Path(words[words.index("--report") + 1]).with_suffix(".html")
    elif words[:1] == ("compare",):
        page = root / words[words.index("--output_dir") + 1] / "comparison.html"
    else:
        return None
    return page if page.is_file() else None


def _begun(run: Path) -> float:
    """When a run was begun, told by its name; 0 for what is no run."""
    if run_number(run) is None:
        return 0.0
    return datetime.strptime(run.name.partition("-")[2], "%Y%m%d-%H%M%S").timestamp()


def _checkpoint(run: Path, shown: Path, mark: str) -> Path | None:
    name = text_of(run / "checkpoints", mark)
    return shown / "checkpoints" / name.strip() if name and name.strip() else None


def _clock(seconds: Json) -> str:
    return datetime.fromtimestamp(seconds).strftime("%m-%d %H:%M:%S") if isinstance(seconds, int | float) else ""
