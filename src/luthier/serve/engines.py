"""What the server needs of whatever produces its text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.generate.request import Piece, Request, Score


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is."""

    running: int
    waiting: int


class EngineFailed(Exception):
    """The engine died or broke while a request was under way; the client is told 500, and may ask again."""


class Engine(Protocol):
    """Continues prompts given as token ids.  Prompts are rendered by the server, so every engine sees the same ids.

    All methods are called on one event loop.
    """

    max_length: int
    """Tokens that prompt and answer may have together."""
    slots: int
    """Requests that run at a time; more wait inside the engine."""

    async def start(self) -> None:
        """Begin to work; returns when requests can be taken.  Raises LuthierError."""
        ...

    async def close(self) -> None:
        """Stop, and leave no process behind.  What is under way fails with EngineFailed."""
        ...

    def trouble(self) -> str | None:
        """Why requests cannot be taken just now, in a sentence; None when they can."""
        ...

    def load(self) -> Load:
        """How busy it is."""
        ...

    def stream(self, request: Request) -> AsyncIterator[Piece]:
        """The answer as it comes.  Closing the iterator (`aclose`) frees the slot.

        Raises:
            DataError: the prompt or the form cannot be used (the client's fault, 400).
            EngineFailed: the engine broke (500).
        """
        ...

    async def weigh(self, prompt: tuple[int, ...], likeliest: int, adapter: str | None) -> tuple[Score, ...]:
        """How likely each token of a prompt is, and the likeliest ones in its place.

        Raises as `stream`; NotImplementedError where it cannot.
        """
        ...

    async def embed(self, prompts: Sequence[tuple[int, ...]], adapter: str | None) -> list[list[float]]:
        """One vector of length 1 for each prompt.  Raises as `stream`; NotImplementedError where it cannot."""
        ...

    async def add_adapter(self, name: str, folders: Sequence[str]) -> None:
        """Make a LoRA adapter known under a name, while serving.

        Args:
            folders: the adapter; or several, each trained over those before it, whose sum is meant.

        Raises:
            LuthierError: it cannot be read, or does not fit the base.
        """
        ...

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter; requests that use it finish first or fail with EngineFailed."""
        ...
