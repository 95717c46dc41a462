"""From one process to several: torchrun starts them, and this process answers for them.

It passes a request to stop on to the workers alone, once, so that they can finish their step and save, and it ends
with their exit code; torchrun by itself would kill them after half a minute and always end with 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.base.rundir import write_atomic

WORKERS = "LUTHIER_WORKERS"
"""Folder in which each worker leaves its process id and its exit code, under its rank."""

_COUNTS = (("NPROC_PER_NODE", 1), ("NNODES", 1), ("NODE_RANK", 0))
_STOPPED, _INTERRUPTED = 75, 130
_POLL = 0.1  # seconds


def torchrun(argv: Sequence[str], environ: Mapping[str, str]) -> list[str] | None:
    """The command that runs `luthier argv` in several processes, when the environment asks for them.

    NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT are those of torchrun.

    Raises:
        ConfigError: a number that is none, or several machines without the address of the first.
    """
    if "LOCAL_RANK" in environ:  # this is one of those processes
        return None
    processes, nodes, rank = (_count(environ, name, least) for name, least in _COUNTS)
    if processes * nodes == 1:
        return None
    where = ["--standalone"]
    if nodes > 1 or "MASTER_PORT" in environ:
        if nodes > 1 and "MASTER_ADDR" not in environ:
            raise ConfigError("several machines need the first one's address", where="MASTER_ADDR")
        where = ["--nnodes", str(nodes), "--node_rank", str(rank)]
        where += ["--master_addr", environ.get("MASTER_ADDR", "127.0.0.1")]
        where += ["--master_port", environ.get("MASTER_PORT", "29500")]
    launcher = [sys.executable, "-m", "luthier.cli.torchrun", "--nproc_per_node", str(processes)]
    return [*launcher, *where, "-m", "luthier", *argv]


def _count(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"expected a whole number of at least {least}, got {text!r}", where=name, code="bad_value")
    return int(text)


def supervise(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run torchrun to its end and return the exit code its workers agree on."""
    processes = int(environ.get("NPROC_PER_NODE", "1"))
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    asked: list[int] = []
    with tempfile.TemporaryDirectory(prefix="luthier-") as folder, _hearing(asked.append):
        # A session of its own: Ctrl-C then reaches this process only.
        environment = {"OMP_NUM_THREADS": str(threads), **environ, WORKERS: folder}
        launcher = subprocess.Popen(command, env=environment, start_new_session=True)
        passed_on = 0
        while launcher.poll() is None:
            if len(asked) > passed_on:
                passed_on += 1
                _stop(launcher, Path(folder), processes)
            time.sleep(_POLL)
        told = {int(path.read_text()) for path in Path(folder).glob("*.code")}
    return agreed(launcher.returncode, told, asked=bool(asked))


def _stop(launcher: subprocess.Popen[bytes], folder: Path, processes: int) -> None:
    """Ask the workers to stop; before all of them are there, torchrun itself, since nothing is lost yet."""
    workers = [int(path.read_text()) for path in folder.glob("*.pid")]
    for pid in workers if len(workers) == processes else [launcher.pid]:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGTERM)


@contextmanager
def _hearing(hear: Callable[[int], None]) -> Generator[None]:
    """Tell `hear` of each request to stop while the block runs."""
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: hear(number)) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agreed(code: int, told: set[int], *, asked: bool) -> int:
    """One exit code from torchrun's and the workers' own.

    Bad settings, bad data and too little memory say more than 1, which a worker also ends with when another one has
    left it.  Workers end with 75 also when torchrun stops them for that reason; only a stop that was asked for counts.
    """
    failures = told - {0, _STOPPED}
    if code == 0 or failures:
        return max(failures, default=0)
    if asked:
        return _STOPPED if _STOPPED in told else _INTERRUPTED
    return 1


@contextmanager
def worker(environ: Mapping[str, str]) -> Generator[list[int]]:
    """In a process that torchrun started: tell the one that answers for it who it is, and at last its exit code.

    The exit code is the last one put into the list.
    """
    codes: list[int] = []
    if WORKERS not in environ:
        yield codes
        return
    folder, rank = Path(environ[WORKERS]), environ["RANK"]
    write_atomic(folder / f"{rank}.pid", str(os.getpid()).encode())
    yield codes
    write_atomic(folder / f"{rank}.code", str(codes[-1]).encode())
