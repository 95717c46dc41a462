"""The engine for models that do not talk: vectors of texts, scores of texts for a query, classes, tags of words.

The model runs on one thread; long requests are cut, so that short ones need not wait for their end, and a client that
leaves costs no more than one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import BadRow
from luthier.generate.request import Piece, Request, Score
from luthier.serve.engines import Load
from luthier.serve.failures import Refusal
from luthier.serve.labelling import Row
from luthier.serve.vectors import Kind, Texts

S = TypeVar("S")
T = TypeVar("T")
Vectors = NDArray[np.float32]
Labels = Callable[[Sequence[Row]], list[tuple[Row, int]]]

_PIECE = 32
"""Texts of a request that are computed before others get their turn."""


@dataclass(frozen=True)
class Abilities:
    """What a model can do, as functions that are called on the model's thread."""

    embed: Callable[[Sequence[Sequence[int]]], Vectors] | None = None
    """Vectors of length 1 of texts as token ids."""
    ids: Callable[[str, Kind], Sequence[int]] | None = None
    """The tokens of a text to be embedded, with what training put in front of queries and of other texts."""
    score: Callable[[Sequence[tuple[str, str]]], NDArray[np.float64]] | None = None
    """Logit of each query and text."""
    size: Callable[[Sequence[tuple[str, str]]], int] | None = None
    """Tokens that are read to score them."""
    classes: Labels | None = None
    """Classes of rows, and the tokens of each.  Raises BadRow."""
    tags: Labels | None = None
    """Tags of rows, and the tokens of each.  Raises BadRow."""
    token_chances: Callable[[Sequence[str]], list[list[list[float]]]] | None = None
    """The probability of every tag for every token of texts."""

    @property
    def routes(self) -> str:
        """Which routes answer."""
        if self.classes is not None:
            return "/classify"
        if self.tags is not None:
            return "/v1/tag and /pooling"
        return "/v1/rerank and /v1/score" if self.score is not None else "/v1/embeddings, /v1/rerank and /v1/score"


class SpecialistEngine:
    """An Engine, and what the routes of vectors and scores ask, on a loaded model.

    Args:
        does: the end of "this model ...".
        max_length: tokens of a text.
        slots: requests at a time.
    """

    def __init__(self, abilities: Abilities, does: str, max_length: int, slots: int):
        self._can, self._does = abilities, does
        self.max_length, self.slots = max_length, slots
        self._thread = ThreadPoolExecutor(1, "luthier-specialist")
        self._under_way = 0
        self._closed = False

    @property
    def routes(self) -> str:
        """Which routes answer."""
        return self._can.routes

    async def start(self) -> None:
        """Nothing: the model is loaded already."""

    async def close(self) -> None:
        """Stop the model's thread."""
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def trouble(self) -> str | None:
        """Nothing, until it is closed."""
        return "the model's thread has ended" if self._closed else None

    def load(self) -> Load:
        """How busy it is."""
        return Load(min(1, self._under_way), max(0, self._under_way - 1))

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Refused: see Engine."""
        raise DataError(f"this model {self._does} and does not talk", code="not_supported")
        yield  # pragma: no cover  (what makes it an iterator)

    async def weigh(self, prompt: tuple[int, ...], likeliest: int, adapter: str | None) -> tuple[Score, ...]:
        """Refused: see Engine."""
        raise NotImplementedError(f"this model {self._does}")

    async def embed(self, prompts: Sequence[tuple[int, ...]], adapter: str | None) -> list[list[float]]:
        """Vectors of token ids; see Engine."""
        if self._can.embed is None:
            raise NotImplementedError(f"this model {self._does}")
        return np.concatenate(await self._in_pieces(self._can.embed, prompts)).tolist()

    async def add_adapter(self, name: str, folders: Sequence[str]) -> None:
        """Refused: see Engine."""
        raise ConfigError("a model that does not talk takes no adapters beside it", where=name)

    async def remove_adapter(self, name: str) -> None:
        """There are none."""

    async def vectors(self, model: str, texts: Texts, kind: Kind) -> tuple[Vectors, int]:
        """See `vectors.Comparing`."""
        embed, ids = self._can.embed, self._can.ids
        if embed is None or ids is None:
            raise self._other()
        tokens = [list(ids(text, kind)) if isinstance(text, str) else list(text) for text in texts]
        return np.concatenate(await self._in_pieces(embed, tokens)), sum(map(len, tokens))

    async def likeness(self, model: str, pairs: Sequence[tuple[str, str]]) -> tuple[NDArray[np.float64], int]:
        """See `vectors.Comparing`: the chance that the text answers the query, or the cosine of two vectors."""
        if self._can.score is not None and self._can.size is not None:
            logits = np.concatenate(await self._in_pieces(self._can.score, pairs))
            return 1 / (1 + np.exp(-logits)), self._can.size(pairs)
        sides: list[Vectors] = []
        tokens = 0
        kinds: tuple[Kind, Kind] = ("query", "document")
        for side, kind in enumerate(kinds):
            place = {text: number for number, text in enumerate(dict.fromkeys(pair[side] for pair in pairs))}
            found, count = await self.vectors(model, list(place), kind)
            sides.append(found[[place[pair[side]] for pair in pairs]])
            tokens += count
        return (sides[0].astype(np.float64) * sides[1]).sum(axis=1), tokens

    async def classes(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """See `labelling.Labelling`."""
        return await self._labels(self._can.classes, rows)

    async def tags(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """See `labelling.Labelling`."""
        return await self._labels(self._can.tags, rows)

    async def token_chances(self, texts: Sequence[str]) -> tuple[list[list[list[float]]], int]:
        """See `labelling.Labelling`."""
        if self._can.token_chances is None:
            raise self._other()
        found = [one for part in await self._in_pieces(self._can.token_chances, texts) for one in part]
        return found, sum(map(len, found))

    async def _labels(self, work: Labels | None, rows: Sequence[Row]) -> tuple[list[Row], int]:
        if work is None:
            raise self._other()
        try:
            found = [one for part in await self._in_pieces(work, rows) for one in part]
        except BadRow as error:
            raise Refusal(400, error.fault.message, error.fault.code, "input") from error
        return [row for row, _ in found], sum(tokens for _, tokens in found)

    def _other(self) -> Refusal:
        """What is said on a route for other models."""
        return Refusal(400, f"this model {self._does}; ask {self._can.routes}", "not_supported", "model")

    async def _in_pieces(self, work: Callable[[Sequence[T]], S], rows: Sequence[T]) -> list[S]:
        """What is found for each piece of the rows."""
        self._under_way += 1
        try:
            loop = asyncio.get_running_loop()
            pieces = [rows[start : start + _PIECE] for start in range(0, len(rows), _PIECE)]
            return [await loop.run_in_executor(self._thread, work, piece) for piece in pieces]
        finally:
            self._under_way -= 1
