"""One trial of a search: a training in a process of its own, so that whatever happens to it happens to it alone.

<search>/trials/0003/config.yaml, output.jsonl, errors.txt
<search>/trials/0003/v1-<time>/        its run directory, as any other
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Protocol

from luthier.base.config import to_yaml
from luthier.base.console import told_error
from luthier.base.rundir import Row, RunDir, runs_in, write_atomic
from luthier.base.signals import tied
from luthier.run.config import RunConfig
from luthier.run.watch import METRICS


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a training failed."""

    text: str
    exit_code: int
    code: str = ""


class Training(Protocol):
    """A training under way."""

    def ended(self) -> int | None:
        """Its exit code; None while it goes on."""
        ...

    def rows(self) -> list[Row]:
        """The rows of its metrics.jsonl so far."""
        ...

    def stop(self) -> None:
        """Ask it to finish its step, save and end."""
        ...

    def fault(self) -> Fault:
        """Why it failed, once it has ended."""
        ...


Start = Callable[[RunConfig, Path, Mapping[str, str]], Training]
"""(settings, folder of the trial, environment) -> the training."""


def run_of(folder: Path) -> Path | None:
    """The newest run directory in a trial's folder."""
    return next(reversed(runs_in(folder)), None)


def started(config: RunConfig, folder: Path, environment: Mapping[str, str]) -> Training:
    """Begin to train, or go on from the trial's last checkpoint.

    Args:
        environment: of the new process, besides this one's.
    """
    run = run_of(folder)
    resume = str(run) if run is not None and (run / "checkpoints" / "LATEST").exists() else None
    config = config.model_copy(update={"save": config.save.model_copy(update={"resume": resume})})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.yaml", to_yaml(config).encode())
    return _Process(folder, environment)


class _Process:
    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self._folder = folder
        self._size, self._rows = -1, list[Row]()
        # The trial is asked to stop when the search dies without a word, so that none is left behind.
        words = [*tied(), sys.executable, "-m", "luthier", "train", str(folder / "config.yaml"), "--json"]
        with (folder / "output.jsonl").open("wb") as output, (folder / "errors.txt").open("wb") as errors:
            # A session of its own: Ctrl-C reaches the search alone, which then stops its trials in order.
            self._process = Popen(
                words,
                stdin=DEVNULL,
                stdout=output,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def ended(self) -> int | None:
        return self._process.poll()

    def rows(self) -> list[Row]:
        run = run_of(self._folder)
        file = run / METRICS if run is not None else None
        if run is None or file is None or not file.exists():
            return []
        size = file.stat().st_size
        if size != self._size:
            self._size, self._rows = size, RunDir(run).read_rows(METRICS)
        return self._rows

    def stop(self) -> None:
        with suppress(ProcessLookupError):  # it has just ended by itself
            self._process.send_signal(signal.SIGTERM)

    def fault(self) -> Fault:
        code = self._process.returncode
        if code < 0:
            return Fault(f"ended by {signal.Signals(-code).name}", code)
        error = told_error((self._folder / "output.jsonl").read_text(encoding="utf-8", errors="replace"))
        if error is not None:
            return Fault(str(error), code, error.code)
        said = (self._folder / "errors.txt").read_text(encoding="utf-8", errors="replace").strip()
        return Fault(said.rpartition("\n")[2] or f"ended with exit code {code}", code)
