"""An engine used from a plain program: its event loop runs on a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

from luthier.base.errors import LuthierError, RunError
from luthier.generate.request import FinishReason, Piece, Request
from luthier.generate.sampler import ByRequests, Completion, K
from luthier.serve.engines import Engine, EngineFailed

R = TypeVar("R")


class Blocking(ByRequests):
    """An Engine for callers that wait.  To be used in a `with` block, which starts the engine and ends it."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Blocking:
        self._thread.start()
        try:
            self.run(self.engine.start())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self.engine.close())
        finally:
            self._stop()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Do something on the engine's loop."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # an interrupted wait must not leave the work behind
            future.cancel()
            raise

    def pieces(self, request: Request) -> Iterator[Piece]:
        """The answer to one request, piece by piece.  Leaving the loop early ends the work.

        Raises:
            DataError: the prompt cannot be used.
            RunError: the engine broke.
        """
        pieces: SimpleQueue[Piece | BaseException] = SimpleQueue()

        async def work() -> None:
            try:
                async for piece in self.engine.stream(request):
                    pieces.put(piece)
            except BaseException as error:  # handed to the reader, who would otherwise wait for ever
                pieces.put(error)

        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            while True:
                piece = pieces.get()
                if isinstance(piece, BaseException):
                    raise _explained(piece)
                yield piece
                if piece.finish_reason:
                    return
        finally:
            future.cancel()

    def answers(self, requests: Iterable[tuple[K, Request]]) -> Iterator[tuple[K, Completion | LuthierError]]:
        """Answers; see ByRequests."""
        source = iter(requests)
        while some := list(islice(source, 2 * self.engine.slots)):
            found = self.run(self._all([request for _, request in some]))
            for (key, _), answer in zip(some, found, strict=True):
                yield key, _completion(answer) if isinstance(answer, list) else answer

    def answer(self, requests: Sequence[Request]) -> list[list[Piece]]:
        """The pieces of each answer; all are under way at once.  Raises as `pieces`."""
        found = self.run(self._all(requests))
        for answer in found:
            if isinstance(answer, LuthierError):
                raise answer
        return [answer for answer in found if isinstance(answer, list)]

    async def _all(self, requests: Sequence[Request]) -> list[list[Piece] | LuthierError]:
        async def one(request: Request) -> list[Piece] | LuthierError:
            try:
                return [piece async for piece in self.engine.stream(request)]
            except LuthierError as error:
                return error
            except EngineFailed as error:
                return RunError(str(error), code="engine_failed")

        return await asyncio.gather(*(one(request) for request in requests))

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _completion(pieces: Sequence[Piece]) -> Completion:
    reason: FinishReason = pieces[-1].finish_reason or "length"
    text, ids = "".join(piece.text for piece in pieces), [token for piece in pieces for token in piece.ids]
    return Completion(text, tuple(ids), reason)


def _explained(error: BaseException) -> BaseException:
    return RunError(str(error), code="engine_failed") if isinstance(error, EngineFailed) else error
