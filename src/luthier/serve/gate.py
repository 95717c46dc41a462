"""How many requests are let in, and the way out when the server is asked to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from luthier.serve.failures import Refusal


class Gate:
    """Counts answers under way.

    Args:
        slots: answers that run at a time.
        queue: answers that may wait besides.
    """

    def __init__(self, slots: int, queue: int):
        self.most, self._slots = slots + queue, slots
        self.inside, self.refused = 0, 0
        self.draining = False
        self._seconds = 1.0
        """how long an answer takes, lately"""
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def entered(self, answers: int = 1) -> AsyncGenerator[None]:
        """Inside while the block runs.

        Raises:
            Refusal: 429 with Retry-After when the queue is full, 503 when the server is stopping.
        """
        self.check(answers)
        self.inside += answers
        self._empty.clear()
        began = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._seconds = 0.8 * self._seconds + 0.2 * (asyncio.get_running_loop().time() - began)
            self.inside -= answers
            if not self.inside:
                self._empty.set()

    def check(self, answers: int) -> None:
        """Raises Refusal as `entered`."""
        if self.draining:
            raise Refusal(503, "the server is stopping", "stopping", headers={"Retry-After": "5"})
        if answers > self.most:
            raise Refusal(400, f"at most {self.most} answers at once", "too_many_answers", "n")
        if self.inside + answers > self.most:
            self.refused += 1
            rounds = self.inside / max(1, self._slots)
            seconds = max(1, min(60, round(self._seconds * rounds)))
            message = f"{self.inside} requests are under way; come back in {seconds} s"
            raise Refusal(429, message, "queue_full", headers={"Retry-After": str(seconds)})

    async def drained(self, seconds: float) -> bool:
        """Let nobody in any more, and wait for those inside; whether all have left in time."""
        self.draining = True
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True
