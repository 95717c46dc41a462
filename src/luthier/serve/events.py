"""Responses that end when their client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import orjson
from fastapi import Request as HttpRequest
from starlette.responses import Response

from luthier.serve.fence import Receive, Scope, Send

R = TypeVar("R")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def while_connected(request: HttpRequest, work: Coroutine[Any, Any, R]) -> R:
    """Do some work, and stop it when the client leaves.

    Raises:
        ClientGone: it has left.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_left(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _stopped(task, gone)


class Events(Response):
    """Server-sent events.

    Args:
        chunks: the data of each event; closed in any case.
        leave: closed when the response has ended, however it ended.
    """

    def __init__(self, chunks: AsyncGenerator[bytes], leave: AsyncExitStack):
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._chunks, self._leave = chunks, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._leave:
            sender = asyncio.create_task(self._send(send))
            gone = asyncio.create_task(_left(receive))
            try:
                await asyncio.wait({sender, gone}, return_when=asyncio.FIRST_COMPLETED)
                if sender.done():
                    sender.result()
            finally:
                await _stopped(sender, gone)
                await self._chunks.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": b"data: " + chunk + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stopped(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Json(Response):
    """A JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)
