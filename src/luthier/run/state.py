"""How a run stands, told by its directory alone: its events, its metrics, its checkpoints and its lock.

Reading disturbs nobody: the lock is never tried, its holder is looked up among the processes instead.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal

import orjson
import psutil

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.base.rundir import Row, rows_of, runs_in
from luthier.run.watch import EVENTS, METRICS

Phase = Literal["preparing", "training", "stale", "finished", "stopped", "failed"]
"""preparing: data and model are being read; stale: alive, but silent for long; stopped: can be resumed; failed: an
error ended it, or it died before it saved anything."""

LIVE: tuple[Phase, ...] = ("preparing", "training", "stale")
_TAIL = 64 * 1024
"""Bytes at the end of a file of rows that tell how the run stands."""
_SILENCE = 120.0
"""Seconds without a row after which a run may be stale; more where its rows come slowly."""
_SLOWER = 8
"""So many times the longest pause so far, and it counts as silence."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds an output directory's lock."""

    pid: int
    since: float
    """Seconds since 1970."""
    ours: bool
    """Whether it is a process of this user on this machine, and may be asked to stop."""


@dataclass(frozen=True, slots=True)
class RunState:
    """How one run stands."""

    path: Path
    phase: Phase
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    memory_gib: float | None = None
    eta_seconds: float | None = None
    updated: float = 0.0
    """When it last wrote anything; seconds since 1970."""
    model: str = ""
    task: str = ""
    method: str = ""
    message: str = ""
    """What its last error said."""
    stopping: bool = False
    """Whether it was asked to stop and is saving."""
    checkpoint: str | None = None
    """Name of the newest checkpoint."""
    holder: Holder | None = None
    """Who is training it."""

    @property
    def live(self) -> bool:
        """Whether a process is at work on it."""
        return self.phase in LIVE

    @property
    def resumable(self) -> bool:
        """Whether it can be gone on with."""
        return not self.live and self.phase != "finished" and self.checkpoint is not None


def state_of(run: Path, now: float | None = None) -> RunState:
    """How the run in `run` stands.

    Args:
        now: seconds since 1970; unset, the present.
    """
    events, metrics = tail_rows(run / EVENTS), tail_rows(run / METRICS)
    updated = _last_sign(run)
    holder = holder_of(run.parent)
    if holder is not None and not _is_at_work_on(run, holder, updated):
        holder = None
    checkpoint = _pointer(run / "checkpoints" / "LATEST")
    phase = phase_of(events, metrics, holder, checkpoint is not None, updated, time.time() if now is None else now)
    told = [_data(row) for row in events]
    started = next((data for data in reversed(told) if data.get("event") == "started"), _first_plan(run))
    failed = next((row for row in reversed(events) if _data(row).get("event") == "failed"), {})
    last, judged = _last(metrics, "loss"), _last(metrics, "eval_loss")
    return RunState(
        run,
        phase,
        step=int(_number(last, "step") or _number(judged, "step") or 0),
        total_steps=int(_number(last, "total_steps") or _number(started, "steps") or 0),
        loss=_number(last, "loss"),
        eval_loss=_number(judged, "eval_loss"),
        tokens_per_second=_number(last, "tokens_per_second"),
        memory_gib=_number(last, "memory_gib"),
        eta_seconds=_number(last, "eta_seconds") if phase in LIVE else None,
        updated=updated,
        model=str(started.get("model", "")),
        task=str(started.get("objective", "")),
        method=str(started.get("method", "")),
        message=str(failed.get("message", "")) if phase == "failed" else "",
        stopping=phase in LIVE and bool(told) and _last_event(told) == "stopping",
        checkpoint=checkpoint,
        holder=holder,
    )


def phase_of(
    events: Sequence[Row], metrics: Sequence[Row], holder: Holder | None, saved: bool, updated: float, now: float
) -> Phase:
    """The phase of a run.

    Args:
        holder: the process at work on it, if there is one.
        saved: whether it has a checkpoint.
        updated, now: seconds since 1970.
    """
    since = int(holder.since) if holder is not None else 0  # events are dated in whole seconds
    told = [data for row in events if (_number(row, "created_at") or 0) >= since and (data := _data(row))]
    last = _last_event(told)
    if last == "finished":
        return "finished"
    if holder is not None:
        if not told:
            return "preparing"
        return "stale" if now - updated > _patience(metrics, since) else "training"
    if last == "failed":
        return "failed"
    return "stopped" if saved else "failed"


def holder_of(output_dir: Path) -> Holder | None:
    """The living process that holds an output directory, if it is on this machine.

    Of processes of this user it is known whether they have the lock open; of others, whether they are as old as it.
    """
    try:
        told = orjson.loads((output_dir / ".lock").read_bytes())
        pid, since = int(told["pid"]), datetime.fromisoformat(told["since"]).timestamp()
        if told["host"] != socket.gethostname():
            return None
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() > since + 2:
            return None
        ours = process.uids().real == os.getuid()
        lock = str((output_dir / ".lock").resolve())
        if ours and all(file.path != lock for file in process.open_files()):
            return None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, psutil.Error):
        return None
    return Holder(pid, since, ours)


def ask_to_stop(run: Path) -> int:
    """Ask the process that trains `run` to save and end; returns its id.

    Once only: a second signal would end it at once.  A run that says it is stopping is not asked again.

    Raises:
        ConfigError: nobody is training it, it is another user's, or it is stopping already.
    """
    state = state_of(run)
    if not state.live or state.holder is None:
        raise ConfigError("nobody is training this run", where=str(run), code="not_running")
    if not state.holder.ours:
        raise ConfigError("this run belongs to another user", where=str(run), code="not_yours")
    if state.stopping:
        raise ConfigError("this run is already saving and stopping", where=str(run), code="stopping")
    os.kill(state.holder.pid, signal.SIGTERM)
    return state.holder.pid


def tail_rows(file: Path, most: int = _TAIL) -> list[Row]:
    """The rows in the last bytes of a file of JSON lines; lines that are cut off are left out."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - most))
            lines = opened.read().splitlines()
    except OSError:
        return []
    return rows_of(lines[1:] if size > most else lines)


def _is_at_work_on(run: Path, holder: Holder, updated: float) -> bool:
    """Whether a holder of the output directory is at work on this run of it: the one with the latest sign of life."""
    others = [child for child in runs_in(run.parent) if child != run]
    return updated >= holder.since - 1 and all(_last_sign(other) <= updated for other in others)


def _last_sign(run: Path) -> float:
    found = 0.0
    for place in (run, run / EVENTS, run / METRICS):
        try:
            found = max(found, place.stat().st_mtime)
        except OSError:
            continue
    return found


def _patience(metrics: Sequence[Row], since: float) -> float:
    times = [value for row in metrics if (value := _number(row, "time") or 0.0) >= since]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    return max(_SILENCE, _SLOWER * max(pauses, default=0.0))


def _first_plan(run: Path) -> Mapping[str, Json]:
    """What the first row of the events says, for runs whose end is far behind it."""
    try:
        with (run / EVENTS).open("rb") as file:
            return _data(orjson.loads(file.readline()))
    except (OSError, orjson.JSONDecodeError):
        return {}


def _last_event(told: Sequence[Mapping[str, Json]]) -> str | None:
    ends = ("started", "stopping", "finished", "failed")
    return next((str(data["event"]) for data in reversed(told) if data.get("event") in ends), None)


def _data(row: Mapping[str, Json]) -> Mapping[str, Json]:
    data = row.get("data")
    return data if isinstance(data, dict) else {}


def _last(rows: Sequence[Row], key: str) -> Row:
    return next((row for row in reversed(rows) if key in row), {})


def _number(row: Mapping[str, Json], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _pointer(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
