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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from luthier.base.errors import ConfigError

EXIT_CODES = "LUTHIER_EXIT_CODES"
"""Folder in which each worker leaves its exit code, under its rank."""

_COUNTS = (("NPROC_PER_NODE", 1), ("NNODES", 1), ("NODE_RANK", 0))
_STOPPED, _INTERRUPTED = 75, 130


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
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, *where, "-m", "luthier", *argv]


def _count(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"expected a whole number of at least {least}, got {text!r}", where=name, code="bad_value")
    return int(text)


def supervise(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run torchrun to its end and return the exit code its workers agree on."""
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for worker in psutil.Process(launcher.pid).children():
            worker.terminate()

    threads = max(1, len(os.sched_getaffinity(0)) // int(environ.get("NPROC_PER_NODE", "1")))
    with tempfile.TemporaryDirectory(prefix="luthier-") as folder:
        environment = {"OMP_NUM_THREADS": str(threads), **environ, EXIT_CODES: folder}
        # A session of its own: Ctrl-C then reaches this process only.
        launcher = subprocess.Popen(command, env=environment, start_new_session=True)
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            code = launcher.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        told = {int(path.read_text()) for path in Path(folder).iterdir()}
    return agreed(code, told, asked=asked)


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


def leave_exit_code(code: int, environ: Mapping[str, str]) -> None:
    """In a worker: tell the process that answers for it how this one ended."""
    if EXIT_CODES in environ:
        (Path(environ[EXIT_CODES]) / environ["RANK"]).write_text(str(code))
