"""Where the rows of an intermediate file came from: a file beside it, so that reports name what the user knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.errors import DataError
from luthier.base.records import Where
from luthier.prepare.parcel import Placed

_PAIR = np.dtype(np.uint32)


def _paths(rows: Path) -> tuple[Path, Path]:
    return rows.with_suffix(".origins"), rows.with_suffix(".files.json")


class OriginWriter:
    """Writes, for every row of `rows`, the file and line it came from: pairs of uint32, and the names as JSON."""

    def __init__(self, rows: Path):
        self._path, self._names_path = _paths(rows)
        self._names: dict[str, int] = {}
        self._stream: BinaryIO = self._path.open("wb")

    def write(self, placed: Placed) -> None:
        """The places of further rows."""
        numbers = np.array([self._names.setdefault(name, len(self._names)) for name in placed.files], _PAIR)
        if len(numbers):
            self._stream.write(np.stack([numbers[placed.file], placed.line], axis=1).astype(_PAIR).tobytes())

    def close(self) -> None:
        """Finish both files."""
        self._stream.close()
        self._names_path.write_bytes(orjson.dumps(list(self._names)))

    def discard(self) -> None:
        """Write no more; what is there already goes with its folder."""
        self._stream.close()


class Origins:
    """What an `OriginWriter` wrote.  Small to send to another process; read where it is used."""

    def __init__(self, rows: Path):
        self._rows = rows
        self._read: tuple[NDArray[np.uint32], list[str]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_rows": self._rows, "_read": None}

    def __getitem__(self, number: int) -> Where:
        """Where row `number` (from 0) came from."""
        ((file, line),) = self.places([number + 1])
        return Where(file, line)

    def places(self, numbers: Sequence[int]) -> list[tuple[str, int]]:
        """Files and lines that rows came from, by their numbers from 1.

        Raises:
            DataError: the file is damaged.
        """
        # set in one piece: several threads ask at a time, and none may see the table without the names
        self._read = table, names = self._read or self._loaded()
        found = table[np.asarray(numbers, np.int64) - 1]
        return [(names[file], line) for file, line in found.tolist()]

    def _loaded(self) -> tuple[NDArray[np.uint32], list[str]]:
        """The places [rows, (file, line)] and the names of the files."""
        path, names = _paths(self._rows)
        try:
            # an empty file cannot be mapped
            table = np.memmap(path, _PAIR, "r") if path.stat().st_size else np.empty(0, _PAIR)
            return table.reshape(-1, 2), orjson.loads(names.read_bytes())
        except OSError as error:
            raise DataError("a cached step is damaged", where=str(self._rows), fix="Remove it") from error
