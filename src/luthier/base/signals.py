"""Asking for an orderly end: SIGTERM and SIGINT finish what is under way and save; a second one leaves at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType

from luthier.base.errors import Stopped


class StopRequest:
    """Whether someone has asked this process to stop."""

    asked: str | None = None
    """Name of the signal."""


@contextmanager
def stop_requests(then: str) -> Generator[StopRequest]:
    """Listen for SIGTERM and SIGINT while the block runs; the handlers of before come back after it.

    Args:
        then: what is done before the process ends, which is told to whoever asks.
    """
    request = StopRequest()

    def hear(number: int, frame: FrameType | None) -> None:
        if request.asked is not None:
            os._exit(Stopped.exit_code)  # what is published on disk stays whole: saving is atomic
        request.asked = signal.Signals(number).name
        if os.environ.get("RANK", "0") == "0":
            # That can take long.  The console may be in use and must not be called from here.
            with suppress(OSError):
                os.write(2, f"\n{request.asked}: {then}; again leaves at once\n".encode())

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_TIE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"
"""Becomes another program, which the system sends SIGTERM when its parent dies (1 is PR_SET_PDEATHSIG)."""


def tied() -> list[str]:
    """Words before a command that end it when we are killed and cannot, where the system can do that (Linux)."""
    return [sys.executable, "-I", "-S", "-c", _TIE] if sys.platform == "linux" else []
