"""The process of an engine: started on a free port, waited for, watched, restarted, and ended with all it started."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx2

from luthier.base.errors import MissingExtra, RunError
from luthier.base.secrets import redact
from luthier.base.signals import tied
from luthier.serve.launch import Serving, command_line, environment

POLL = 0.25
"""Seconds between questions whether it is ready."""
WATCH = 5.0
"""Seconds between questions whether it still is."""
DEAF = 6
"""So many unanswered questions in a row, and it counts as hung."""
GRACE = 15.0
"""Seconds that it gets to end by itself."""
TRIES = 5
"""Starts in a row that fail before it is given up."""


class Process:
    """One engine's process.

    Args:
        recovered: called each time it is ready; what it raises counts as a failed start.
        patience: seconds until it must be ready.
    """

    def __init__(self, serving: Serving, recovered: Callable[[], Awaitable[None]], patience: float, pause: float = 1.0):
        self.serving = serving
        self.key = secrets.token_urlsafe(24)
        self.port = 0
        self.why: str | None = "it has not been started"
        """Why it cannot be used, or None."""
        self._recovered, self._patience, self._pause = recovered, patience, pause
        handle, name = tempfile.mkstemp(prefix=f"luthier-{serving.peer}-", suffix=".log")
        os.close(handle)
        self.log, self._tells = Path(name), False
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What it is to be asked with."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def pid(self) -> int | None:
        """The process, while it lives."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def start(self) -> None:
        """Start it, and watch it from then on.

        Raises:
            MissingExtra: there is no such program.
            RunError: code `engine_failed`, with the last lines that it wrote.
        """
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End it, and everything that it started."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        self.why = "it has been ended"
        await self._end()
        if not self._tells:
            self.log.unlink(missing_ok=True)

    async def _start(self) -> None:
        serving = self.serving
        self.port = _free_port()
        words = command_line(serving, self.port, self.key)
        program = shutil.which(words[0])
        if program is None:
            raise MissingProgram(words[0], serving.peer)
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tied(), program, *words[1:],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(serving, self.key, os.environ),
                start_new_session=True,
            )  # fmt: skip
        await self._ready()
        await self._recovered()
        self.why = None

    async def _ready(self) -> None:
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + self._patience
        while self._process.returncode is None:
            if await self._answers():
                return
            if asyncio.get_running_loop().time() > deadline:
                raise self._failed(f"was not ready after {self._patience:.0f} s")
            await asyncio.sleep(POLL)
        raise self._failed(f"ended with {self._process.returncode} before it was ready")

    async def _answers(self) -> bool:
        try:
            async with httpx2.AsyncClient(timeout=WATCH, trust_env=False) as client:
                return (await client.get(f"{self.address}/health", headers=self.headers)).status_code == 200
        except httpx2.HTTPError:
            return False

    async def _watch(self) -> None:
        """Restart it whenever it ends or no longer answers."""
        while True:
            await self._trouble()
            await self._end()
            for failed in range(TRIES):
                try:
                    await self._start()
                    break
                except (RunError, OSError) as error:
                    self.why = str(error)
                    await self._end()
                    await asyncio.sleep(self._pause * 2**failed)
            else:
                self.why = f"{self.serving.peer} could not be started again: {self.why}"
                return

    async def _trouble(self) -> None:
        """Return when it has died or hung, with the reason in `why`."""
        assert self._process is not None
        ended = asyncio.create_task(self._process.wait())
        silent = 0
        try:
            while silent < DEAF:
                done, _ = await asyncio.wait([ended], timeout=WATCH)
                if done:
                    self.why = f"{self.serving.peer} has died and is being started again"
                    return
                silent = 0 if await self._answers() else silent + 1
            self.why = f"{self.serving.peer} no longer answers and is being started again"
        finally:
            ended.cancel()

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        group = process.pid  # of which it is the leader
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE)
        with suppress(ProcessLookupError):  # those that it left behind
            os.killpg(group, signal.SIGKILL)
        await process.wait()
        self._process = None

    def _failed(self, how: str) -> RunError:
        self._tells = True  # the log says more than its last lines
        tail = self.log.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()[-5:]
        said = redact(" | ".join(line.strip() for line in tail))
        return RunError(
            f"{self.serving.peer} {how}" + (f": {said}" if said else ""),
            code="engine_failed",
            fix=f"{self.log} has all that it wrote; its arguments are set with --engine_args",
        )


class MissingProgram(MissingExtra):
    """The engine is not installed."""

    def __init__(self, program: str, peer: str):
        super().__init__(peer, peer, what_for=f"--infer_backend {peer}")
        self.what = f"--infer_backend {peer} needs the program {program!r}, which is not installed"
        self.fix = f"Install {peer} in an environment of its own, and name its program with --engine_command"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
