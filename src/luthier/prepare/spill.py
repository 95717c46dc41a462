"""Numbers of every row, kept in memory while they are few and in a file once they are many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from luthier.base.rundir import storage_error

IN_MEMORY = 64 * 2**20
"""Bytes of a column that stay in memory, unless it has a limit of its own."""
_BLOCK = 2**20


class Spill:
    """One value (or row of values) for each row, appended piece by piece.

    Args:
        path: file that takes what is too much for memory; it is written only then, and open only while it is used, so
            that there may be very many.
        width: values a row; 0 for plain numbers.
        limit: most bytes kept in memory.
    """

    def __init__(self, path: Path, dtype: DTypeLike, width: int = 0, limit: int = IN_MEMORY):
        self.dtype, self.width = np.dtype(dtype), width
        self._path, self._limit = path, limit
        self._held: list[NDArray[Any]] = []
        self._bytes = self.rows = 0
        self._stored = False

    def append(self, piece: NDArray[Any]) -> None:
        """Add the values of further rows.

        Raises:
            RunError: code `disk_full` or `cannot_write`.
        """
        piece = np.ascontiguousarray(piece, dtype=self.dtype)
        self.rows += len(piece)
        self._bytes += piece.nbytes
        self._held.append(piece)
        if self._bytes > self._limit:
            self._store()
            self._limit = min(self._limit, _BLOCK)

    def _store(self) -> None:
        """Put what is held into the file."""
        try:
            with self._path.open("ab" if self._stored else "wb") as stream:
                for held in self._held:
                    stream.write(held.data)
        except OSError as error:
            raise storage_error(error, self._path) from error
        self._stored = True
        self._held.clear()
        self._bytes = 0

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All values in order, a few at a time."""
        if self._stored:
            each = max(1, self.width) * self.dtype.itemsize
            with self._path.open("rb") as stream:
                while data := stream.read(_BLOCK // each * each):
                    yield self._shaped(np.frombuffer(data, self.dtype))
        yield from self._held

    def all(self) -> NDArray[Any]:
        """All values at once."""
        if not self._stored and len(self._held) == 1:
            return self._held[0]
        values = self._shaped(np.empty(self.rows * max(1, self.width), self.dtype))
        start = 0
        for block in self.blocks():
            values[start : start + len(block)] = block
            start += len(block)
        return values

    def select(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The values of some rows, whose numbers ascend."""
        found: list[NDArray[Any]] = [self._shaped(np.empty(0, self.dtype))]
        start = 0
        for block in self.blocks():
            low, high = np.searchsorted(rows, (start, start + len(block))).tolist()
            found.append(block[rows[low:high] - start])
            start += len(block)
        return np.concatenate(found)

    def take(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[Any]:
        """Values [start, end) of plain numbers for each pair of places, joined."""
        if not self._stored:
            held = self.all()
            self._held = [held]
            counts = ends - starts
            at = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
            return held[at]
        if self._held:
            self._store()
        each = self.dtype.itemsize
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        with self._path.open("rb") as stream:
            number = stream.fileno()
            data = b"".join(os.pread(number, (end - start) * each, start * each) for start, end in pairs)
        return np.frombuffer(data, self.dtype)

    def _shaped(self, flat: NDArray[Any]) -> NDArray[Any]:
        return flat.reshape(-1, self.width) if self.width else flat

    def close(self) -> None:
        """Give the file back."""
        if self._stored:
            self._path.unlink(missing_ok=True)
            self._stored = False
        self._held.clear()


def spills(folder: Path, names: Sequence[str], dtype: DTypeLike) -> dict[str, Spill]:
    """A column of plain numbers for each name; together they keep no more in memory than one alone may."""
    limit = IN_MEMORY // max(1, len(names))
    return {name: Spill(folder / f"numbers-{at}", dtype, limit=limit) for at, name in enumerate(names)}
