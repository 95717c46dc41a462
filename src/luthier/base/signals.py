"""Asking a run to stop: SIGTERM and SIGINT finish the step and save; a second one leaves at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType

from luthier.base.errors import Stopped


class StopRequest:
    """Whether someone has asked this process to stop."""

    asked: str | None = None
    """Name of the signal."""


@contextmanager
def stop_requests() -> Generator[StopRequest]:
    """Listen for SIGTERM and SIGINT while the block runs; the handlers of before come back after it."""
    request = StopRequest()

    def hear(number: int, frame: FrameType | None) -> None:
        if request.asked is not None:
            os._exit(Stopped.exit_code)  # what is published on disk stays whole: saving is atomic
        request.asked = signal.Signals(number).name
        if os.environ.get("RANK", "0") == "0":
            # A step or an evaluation can take long.  The console may be in use and must not be called from here.
            with suppress(OSError):
                os.write(2, f"\n{request.asked}: finishing this step, then saving; again leaves at once\n".encode())

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
