"""The processes of one run, forked from this one: what torchrun starts, without its seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def places(count: int) -> list[dict[str, str]]:
    """The environment by which each of `count` processes finds the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    return [{**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def together(count: int, work: Callable[[], Any], timeout: float = 120.0) -> list[Any]:
    """What `work` returns in each of `count` processes that find each other, as JSON carries it."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(count)]
        children = [_fork(place, work, file) for place, file in zip(places(count), files, strict=True)]
        deadline = time.monotonic() + timeout
        left = set(children)
        failed = False
        while left and not failed and time.monotonic() < deadline:
            for child in list(left):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    left.remove(child)
                    failed |= status != 0
            time.sleep(0.01)
        for child in left:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        said = [file.read_text() if file.exists() else "nothing: ended from outside" for file in files]
        assert not failed and not left, "\n".join(said)
        return [json.loads(text) for text in said]


def _fork(place: dict[str, str], work: Callable[[], Any], file: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about forking beside threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(place)
        file.write_text(json.dumps(work()))
        code = 0
    except BaseException:
        file.write_text(traceback.format_exc())
    finally:
        os._exit(code)
