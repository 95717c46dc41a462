"""A model that answers from a thread of its own, for any number of askers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

import torch

from luthier.base.errors import LuthierError, RunError
from luthier.generate.batching import Batching
from luthier.generate.form import Forms
from luthier.generate.padded import Padded
from luthier.generate.request import Piece, Request, Sink, Ticket
from luthier.generate.sampler import ByRequests, Completion, K, ends_of
from luthier.model.causal import Model

R = TypeVar("R")


class Work(Protocol):
    """What the thread drives: `Batching`, or `Padded` for models that cannot run several sequences in one row."""

    max_length: int
    slots: int
    forms: Forms

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    def add(self, ticket: Ticket) -> None: ...
    def step(self) -> None: ...
    def fail(self, error: Exception) -> None: ...


class Continuous(ByRequests):
    """A Sampler whose requests share the model's steps.

    Args:
        stop_ids: tokens that end an answer besides the model's and the tokenizer's own.
        slots, max_length, cache_tokens: as in `Batching`.
    """

    def __init__(
        self,
        model: Model,
        *,
        stop_ids: Collection[int] = (),
        slots: int = 16,
        max_length: int | None = None,
        cache_tokens: int | None = None,
    ):
        self.model, self.stop_ids = model, ends_of(model, stop_ids)
        self.batching: Batching | None = None
        if model.packed:
            self.batching = Batching(
                model, stop_ids=self.stop_ids, slots=slots, max_length=max_length, cache_tokens=cache_tokens
            )
        self.work: Work = self.batching or Padded(model, stop_ids=self.stop_ids, slots=slots, max_length=max_length)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._loop, name="luthier-generate", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def call(self, job: Callable[[], R]) -> Future[R]:
        """Run something between two steps, in the thread that runs the model."""
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)

        self._jobs.put(run)
        return future

    def submit(self, request: Request, sink: Sink) -> Ticket:
        """Hand in a request; `sink` is called from the model's thread."""
        ticket = Ticket(request, sink)

        def take() -> None:
            try:
                self.work.add(ticket)
            except Exception as error:  # of whatever kind, it is the answer to this request
                sink(error)

        self._jobs.put(take)
        return ticket

    def close(self) -> None:
        """Stop the thread; requests under way fail."""
        self._jobs.put(None)
        self._thread.join()

    def pieces(self, request: Request) -> Iterator[Piece]:
        """The answer to one request, piece by piece; see ByRequests."""
        queue: SimpleQueue[Piece | Exception] = SimpleQueue()
        ticket = self.submit(request, queue.put)
        try:
            while True:
                piece = queue.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            ticket.cancelled = True

    def answers(self, requests: Iterable[tuple[K, Request]]) -> Iterator[tuple[K, Completion | LuthierError]]:
        """Answers as they are finished; see ByRequests."""
        source = iter(requests)
        pieces: SimpleQueue[tuple[_Open[K], Piece | Exception]] = SimpleQueue()
        under_way: set[_Open[K]] = set()
        ended = False
        try:
            while not ended or under_way:
                while not ended and len(under_way) < 2 * self.work.slots:
                    asked = next(source, None)
                    ended = asked is None
                    if asked is not None:
                        under_way.add(_Open(self, *asked, pieces))
                if not under_way:
                    return
                one, piece = pieces.get()
                if isinstance(piece, Exception) and not isinstance(piece, LuthierError):
                    raise piece
                answer = piece if isinstance(piece, LuthierError) else one.take(piece)
                if answer is not None:
                    under_way.remove(one)
                    yield one.key, answer
        finally:
            for one in under_way:
                one.ticket.cancelled = True

    def _loop(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            busy = self.work.running + self.work.waiting > 0
            # Everything that has come in before the next step, and without work the next thing that comes.
            while not busy or not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    self.work.fail(RunError("the generator was closed", code="closed"))
                    return
                job()
                busy = self.work.running + self.work.waiting > 0
            try:
                self.work.step()
            except Exception as error:  # a broken step ends what shares it; the next request finds a working model
                self.work.fail(error)


class _Open(Generic[K]):
    """One of many requests, and what has come of it."""

    def __init__(
        self,
        generator: Continuous,
        key: K,
        request: Request,
        pieces: SimpleQueue[tuple[_Open[K], Piece | Exception]],
    ):
        self.key = key
        self._pieces: list[Piece] = []
        self.ticket = generator.submit(request, lambda piece: pieces.put((self, piece)))

    def take(self, piece: Piece) -> Completion | None:
        """Add a piece; the whole answer when it was the last one."""
        self._pieces.append(piece)
        return Completion.of(self._pieces) if piece.finish_reason else None
