"""What the routes work with, and how an answer is made: inside the gate, in time, and only while its client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request as HttpRequest
from starlette.responses import Response

from luthier.base.errors import LuthierError
from luthier.generate.config import SamplingConfig
from luthier.serve import answering
from luthier.serve.answering import Frame, Numbered, Told
from luthier.serve.asking import Asked
from luthier.serve.config import ServerConfig
from luthier.serve.engines import Engine, EngineFailed
from luthier.serve.events import Events, Json, while_connected
from luthier.serve.failures import Refusal
from luthier.serve.gate import Gate
from luthier.serve.labelling import Labelling
from luthier.serve.metrics import Metrics
from luthier.serve.spelling import Spelling
from luthier.serve.told import as_refusal
from luthier.serve.vectors import Comparing
from luthier.serve.voices import Voice, Voices

Stream = Callable[[Frame, Asked, AsyncIterator[Numbered], Spelling, list[Told]], AsyncIterator[dict[str, Any]]]
Answer = Callable[[Frame, Asked, list[Told], Spelling], dict[str, Any]]


@dataclass(frozen=True)
class House:
    """What the routes work with."""

    engine: Engine
    voices: Voices
    config: ServerConfig
    defaults: SamplingConfig
    gate: Gate
    metrics: Metrics
    comparing: Comparing
    labelling: Labelling

    async def whole(self, request: HttpRequest, voice: Voice, frame: Frame, asked: Asked, answer: Answer) -> Response:
        """What a model writes, when it has been written.  Raises Refusal, ClientGone, and as `Engine.stream`."""
        spelling = Spelling(voice.tokenizer)
        self._check_ready()
        async with self.gate.entered(len(asked.requests)):
            pieces = self._timed(answering.asked_pieces(self.engine, asked))
            told = await while_connected(request, answering.whole(pieces, len(asked.requests)))
        self._count(asked, told)
        return Json(answer(frame, asked, told, spelling))

    async def stream(
        self, request: HttpRequest, voice: Voice, frame: Frame, asked: Asked, stream: Stream, *, with_usage: bool
    ) -> Response:
        """What a model writes, as it is written.  Raises as `whole`, until there is a first piece."""
        spelling, told = Spelling(voice.tokenizer), [Told() for _ in asked.requests]
        self._check_ready()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.gate.entered(len(asked.requests)))
            pieces = self._timed(answering.asked_pieces(self.engine, asked))
            stack.push_async_callback(pieces.aclose)
            # What is wrong with the request shows before the first piece, while there can still be another status.
            first = await while_connected(request, _next(pieces))
            assert first is not None, "an answer has a last piece"
            chunks = stream(frame, asked, _after(first, pieces), spelling, told)
            return Events(self._encoded(frame, asked, chunks, told, with_usage=with_usage), stack.pop_all())
        raise AssertionError

    async def read(self, request: HttpRequest, work: Any) -> Response:
        """What a model makes of texts.

        Args:
            work: a coroutine that gives the body of the answer.

        Raises:
            Refusal: as `whole`, or as `work` says.
        """
        try:
            self._check_ready()
            async with self.gate.entered(), asyncio.timeout(self.config.timeout):
                return Json(await while_connected(request, work))
        except TimeoutError as error:
            raise self._too_slow() from error
        finally:
            work.close()

    async def _encoded(
        self, frame: Frame, asked: Asked, chunks: AsyncIterator[dict[str, Any]], told: list[Told], *, with_usage: bool
    ) -> AsyncGenerator[bytes]:
        """The events of a stream: chunks, usage if asked for, and the mark of the end."""
        try:
            async for chunk in chunks:
                yield orjson.dumps(chunk)
        except (Refusal, LuthierError, EngineFailed) as error:
            yield as_refusal(error).encoded()
            return
        self._count(asked, told)
        if with_usage:
            yield orjson.dumps(frame.around([], usage=answering.usage(asked, told)))
        yield b"[DONE]"

    async def _timed(self, pieces: AsyncIterator[Numbered]) -> AsyncGenerator[Numbered]:
        """The same pieces within the deadline, with a look at the clock."""
        began = time.monotonic()
        waiting_for_first = True
        try:
            while True:
                left = self.config.timeout - (time.monotonic() - began)
                # Not wait_for, which in Python 3.11 forgets that it was cancelled when a piece comes at that moment.
                async with asyncio.timeout(left):
                    item = await anext(pieces, None)
                if item is None:
                    break
                if waiting_for_first:
                    self.metrics.first.observe(time.monotonic() - began)
                    waiting_for_first = False
                yield item
            self.metrics.seconds.observe(time.monotonic() - began)
        except TimeoutError as error:
            raise self._too_slow() from error
        finally:
            await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def _check_ready(self) -> None:
        """Raises Refusal: 503 while the engine cannot take requests."""
        if (why := self.engine.trouble()) is not None:
            raise Refusal(503, why, "not_ready", headers={"Retry-After": "5"})

    def _count(self, asked: Asked, told: list[Told]) -> None:
        tokens = self.metrics.tokens
        tokens.labels("prompt").inc(sum(len(request.prompt) for request in asked.requests))
        tokens.labels("cached").inc(sum(one.cached for one in told))
        tokens.labels("answer").inc(sum(one.tokens for one in told))

    def _too_slow(self) -> Refusal:
        return Refusal(408, f"not answered within {self.config.timeout:g} s", "deadline_exceeded")


async def _next(pieces: AsyncIterator[Numbered]) -> Numbered | None:
    return await anext(pieces, None)


async def _after(first: Numbered, pieces: AsyncIterator[Numbered]) -> AsyncIterator[Numbered]:
    yield first
    async for item in pieces:
        yield item
