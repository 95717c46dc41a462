"""The engine in this process: the model on a thread of its own, its answers on the server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from luthier.base.errors import ConfigError, LuthierError
from luthier.generate.continuous import Continuous
from luthier.generate.embed import embed
from luthier.generate.request import Piece, Request, Score
from luthier.generate.weigh import weigh
from luthier.model.heads import Pooling
from luthier.serve.engines import EngineFailed, Load

R = TypeVar("R")


class LocalEngine:
    """An Engine on a loaded model."""

    def __init__(self, generator: Continuous, pooling: Pooling = "last"):
        self._generator = generator
        self._pooling: Pooling = pooling
        self.max_length, self.slots = generator.work.max_length, generator.work.slots

    async def start(self) -> None:
        """Nothing: the model is loaded already."""

    async def close(self) -> None:
        """Stop the model's thread."""
        await asyncio.to_thread(self._generator.close)

    def trouble(self) -> str | None:
        """Nothing, as long as the thread lives."""
        return None if self._generator.alive else "the model's thread has ended"

    def load(self) -> Load:
        """How busy it is."""
        return Load(self._generator.work.running, self._generator.work.waiting)

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """The answer as it comes; see Engine."""
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sink(piece: Piece | Exception) -> None:
            if not loop.is_closed():  # a server that has gone needs no answers
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        ticket = self._generator.submit(request, sink)
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, LuthierError):
                    raise piece
                if isinstance(piece, Exception):
                    raise EngineFailed(f"{type(piece).__name__}: {piece}") from piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            ticket.cancelled = True

    async def weigh(self, prompt: tuple[int, ...], likeliest: int, adapter: str | None) -> tuple[Score, ...]:
        """How likely the tokens of a prompt are; see Engine."""
        batching, model = self._generator.batching, self._generator.model
        if batching is None or adapter is None:
            return await self._between_steps(lambda: weigh(model, prompt, likeliest))
        with_adapter = batching.adapters[adapter]

        def adapted() -> tuple[Score, ...]:
            with batching.several.used([with_adapter] * len(prompt)):
                return weigh(model, prompt, likeliest)

        return await self._between_steps(adapted)

    async def embed(self, prompts: Sequence[tuple[int, ...]], adapter: str | None) -> list[list[float]]:
        """Vectors of texts; see Engine."""
        batching, model = self._generator.batching, self._generator.model
        if batching is None or adapter is None:
            return await self._between_steps(lambda: embed(model, prompts, self._pooling).tolist())
        with_adapter = batching.adapters[adapter]

        def one_by_one() -> list[list[float]]:
            found: list[list[float]] = []
            for prompt in prompts:
                with batching.several.used([with_adapter] * len(prompt)):
                    found += embed(model, [prompt], self._pooling).tolist()
            return found

        return await self._between_steps(one_by_one)

    async def add_adapter(self, name: str, folders: Sequence[str]) -> None:
        """Read an adapter between two steps; see Engine."""
        batching = self._generator.batching
        if batching is None:
            raise ConfigError("this model cannot run several adapters; merge the adapter into it", where=name)

        def read() -> None:
            batching.adapters[name] = batching.several.read(folders)

        await self._between_steps(read)

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter; answers under way keep it."""
        batching = self._generator.batching
        if batching is not None:
            await self._between_steps(lambda: batching.forget(name))

    async def _between_steps(self, job: Callable[[], R]) -> R:
        return await asyncio.wrap_future(self._generator.call(job))
