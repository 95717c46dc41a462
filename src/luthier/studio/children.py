"""Commands that a page has started.  They are processes of their own: they outlive the page and the Studio.

<first root>/.studio/<time>-<name>/
    command.json    words, shell's process id, when
    recipe.yaml     the settings of a training
    console.log     all that it wrote
    exit            its exit code, once it has ended
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson
import psutil

from luthier.base.console import told_error
from luthier.base.errors import ConfigError
from luthier.base.rundir import write_atomic
from luthier.base.secrets import redact

FOLDER = ".studio"
LUTHIER = (sys.executable, "-P", "-m", "luthier")
"""A module that lies in the user's folder does not take the place of one of ours."""
_SHELL = 'log="$1"; shift; (trap : TERM; "$@"; echo $? > "$0") > "$log" 2>&1 < /dev/null & echo $!'
"""A shell of its own for each command, which nobody has to wait for, notes the exit code; a signal is the command's."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NAME = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z_]+(?:-[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Child:
    """One command."""

    folder: Path
    words: tuple[str, ...]
    """Of luthier: without the program."""
    pid: int
    """Of the shell around it."""
    since: float
    """Seconds since 1970."""

    @property
    def name(self) -> str:
        """What addresses call it."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """All that it wrote."""
        return self.folder / "console.log"

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs, or when it was killed together with its shell."""
        try:
            return int((self.folder / "exit").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    @property
    def running(self) -> bool:
        """Whether it is at work."""
        return self.exit_code is None and self._shell() is not None

    def stop(self) -> None:
        """Ask it for an orderly end, once; a second signal would end it at once."""
        asked = self.folder / "stopping"
        shell = self._shell()
        if shell is None or asked.exists():
            return
        with suppress(psutil.Error):
            for process in shell.children():
                asked.touch()
                process.send_signal(signal.SIGTERM)

    def tail(self, most: int = 64 * 1024) -> str:
        """The end of what it wrote, for a page: without secrets and without signs that steer a terminal."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - most))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        lines = (line.rpartition("\r")[2] for line in _ESCAPES.sub("", text).split("\n"))
        return redact("\n".join(lines)).strip("\n")

    def _shell(self) -> psutil.Process | None:
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if process.status() != psutil.STATUS_ZOMBIE and process.create_time() < self.since + 5:
                return process
        return None


class Children:
    """The commands of one Studio, those of earlier days included.

    Args:
        root: where they work and are kept.
    """

    def __init__(self, root: Path):
        self.root = root
        self._folder = root / FOLDER

    def start(self, name: str, words: Sequence[str], files: Mapping[str, str] | None = None) -> Child:
        """Start a command of luthier.

        Args:
            name: what its folder is called behind the time.
            words: may hold `{folder}`, its folder relative to the root.
            files: text files to lie in its folder.

        Raises:
            ConfigError: the root cannot be written.
        """
        folder = self._new(name)
        for file, text in (files or {}).items():
            write_atomic(folder / file, text.encode())
        words = [word.replace("{folder}", str(folder.relative_to(self.root))) for word in words]
        since = time.time()
        process = subprocess.run(
            ["/bin/sh", "-c", _SHELL, str(folder / "exit"), str(folder / "console.log"), *LUTHIER, *words],
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            check=True,
        )
        pid = int(process.stdout)
        told = {"words": words, "pid": pid, "since": since}
        write_atomic(folder / "command.json", orjson.dumps(told))
        return Child(folder, tuple(words), pid, since)

    def find(self, name: str) -> Child:
        """A command by the name of its folder.

        Raises:
            ConfigError: there is none.
        """
        folder = self._folder / name
        try:
            if not _NAME.fullmatch(name):
                raise ValueError(name)
            told = orjson.loads((folder / "command.json").read_bytes())
            return Child(folder, tuple(told["words"]), int(told["pid"]), float(told["since"]))
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError("no such command", where=name, code="missing") from error

    def all(self) -> list[Child]:
        """Every command, the newest first."""
        found: list[Child] = []
        for folder in sorted(self._folder.glob("*-*"), reverse=True):
            with suppress(ConfigError):
                found.append(self.find(folder.name))
        return found

    def _new(self, name: str) -> Path:
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
        try:
            for number in range(1, 100):
                folder = self._folder / (stem if number == 1 else f"{stem}-{number}")
                with suppress(FileExistsError):
                    folder.mkdir(parents=True)
                    return folder
        except OSError as error:
            raise ConfigError(f"cannot write: {error.strerror}", where=str(self._folder), code="bad_root") from error
        raise ConfigError("too many commands at once", where=str(self._folder))


def error_in(out: str) -> str | None:
    """The error that a command with --json printed, as a person reads it."""
    error = told_error(out)
    return None if error is None else redact(str(error))


async def ask(words: Sequence[str], root: Path, seconds: float = 120.0) -> tuple[int, str, str]:
    """Run a short command to its end: exit code, what it printed, what it said.  Its process ends with the wait."""
    process = await asyncio.create_subprocess_exec(
        *LUTHIER,
        *words,
        cwd=root,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, said = await asyncio.wait_for(process.communicate(), seconds)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), redact(said.decode(errors="replace").strip())
