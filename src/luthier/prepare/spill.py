"""Numbers of every row, kept in memory while they are few and in a file once they are many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from luthier.base.rundir import storage_error

IN_MEMORY = 64 * 2**20
"""Bytes of a column that stay in memory, unless it has a limit of its own."""
_BLOCK = 2**20


class Spill:
    """One value (or row of values) for each row, appended piece by piece.

    Args:
        path: file that takes what is too much for memory; it is written only then.
        width: values a row; 0 for plain numbers.
        limit: most bytes kept in memory.
    """

    def __init__(self, path: Path, dtype: DTypeLike, width: int = 0, limit: int = IN_MEMORY):
        self.dtype, self.width = np.dtype(dtype), width
        self._path, self._limit, self._file = path, limit, None
        self._held: list[NDArray[Any]] = []
        self._bytes = self.rows = 0
        self._file: BinaryIO | None

    def append(self, piece: NDArray[Any]) -> None:
        """Add the values of further rows.

        Raises:
            RunError: code `disk_full` or `cannot_write`.
        """
        piece = np.ascontiguousarray(piece, dtype=self.dtype)
        self.rows += len(piece)
        self._bytes += piece.nbytes
        if self._bytes <= self._limit:
            self._held.append(piece)
            return
        try:
            if self._file is None:
                self._file = self._path.open("w+b")
                for held in self._held:
                    self._file.write(held.data)
                self._held.clear()
            self._file.write(piece.data)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All values in order, a few at a time."""
        if self._file is None:
            yield from self._held
            return
        self._file.flush()
        each = max(1, self.width) * self.dtype.itemsize
        with self._path.open("rb") as stream:
            while data := stream.read(_BLOCK // each * each):
                yield self._shaped(np.frombuffer(data, self.dtype))

    def all(self) -> NDArray[Any]:
        """All values at once."""
        if self._file is None and len(self._held) == 1:
            return self._held[0]
        values = self._shaped(np.empty(self.rows * max(1, self.width), self.dtype))
        start = 0
        for block in self.blocks():
            values[start : start + len(block)] = block
            start += len(block)
        return values

    def take(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[Any]:
        """Values [start, end) of plain numbers for each pair of places, joined."""
        if self._file is None:
            held = self.all()
            self._held = [held]
            counts = ends - starts
            at = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
            return held[at]
        self._file.flush()
        each, number = self.dtype.itemsize, self._file.fileno()
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        data = b"".join(os.pread(number, (end - start) * each, start * each) for start, end in pairs)
        return np.frombuffer(data, self.dtype)

    def _shaped(self, flat: NDArray[Any]) -> NDArray[Any]:
        return flat.reshape(-1, self.width) if self.width else flat

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = None
        self._held.clear()
