"""What a worker reads at a time: a stretch of a file, small enough to hold, that says where its rows stand.

Plain text files of one row a line are cut at line ends by their bytes alone.  Everything else (arrays, tables,
compressed files, other encodings) is opened by the foundation, which indexes it once on disk, and cut by row numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import DataError
from luthier.data.config import DataConfig
from luthier.data.cut import cut
from luthier.data.encoding import COMPRESSED
from luthier.data.mix import take_indices
from luthier.data.row import Row, Rows
from luthier.data.sources import DatasetSpec, files_of, open_file, open_rows
from luthier.data.textfile import SUFFIXES, TextFile, describe, kind_of

CHUNK_BYTES = 4 * 2**20
_BLOCK = 2**20
_MOST_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Span:
    """Whole lines of a plain UTF-8 file: bytes [start, end), whose first line is number `line`."""

    file: TextFile
    start: int
    end: int
    line: int

    @property
    def name(self) -> str:
        """The file's name as the user gave it."""
        return self.file.name

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def quick(self) -> bool:
        """Whether it is JSON lines and small enough to be held as a whole."""
        return self.file.layout.kind == "lines" and self.size <= 2 * CHUNK_BYTES and self.size <= self.file.limit

    def data(self) -> bytes:
        """All bytes; ask only when it is `quick`.

        Raises:
            DataError: code `changed`.
        """
        return b"".join(self._blocks())

    def lines(self, data: bytes) -> tuple[Sequence[int], list[bytes]]:
        """Numbers and bytes of the lines that are not blank, without their newlines, of `data`."""
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        numbers = range(self.line, self.line + len(lines))
        if b"" in lines or any(map(bytes.isspace, lines)):
            filled = [at for at, line in enumerate(lines) if line and not line.isspace()]
            return [numbers[at] for at in filled], [lines[at] for at in filled]
        return numbers, lines

    def rows(self) -> Iterator[Row]:
        """Its rows, in order."""
        for number, (_, _, line, column, data) in enumerate(cut(self._blocks(), self.file.layout, self.file.limit)):
            yield self.file.row(number, data, line + self.line - 1, column)

    def _blocks(self) -> Iterator[bytes]:
        left = self.size
        with self.file.path.open("rb") as stream:
            stream.seek(self.start)
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise DataError("the file became shorter while it was read", where=self.file.name, code="changed")
                left -= len(block)
                yield block


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [start, stop) of anything with random access, or those rows of it that `picks` names."""

    source: Rows
    start: int
    stop: int
    size: int
    picks: NDArray[np.int64] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """What the set is called in reports."""
        return self.source.name

    def rows(self) -> Iterator[Row]:
        """Its rows, in order."""
        for index in range(self.start, self.stop):
            yield self.source[index if self.picks is None else int(self.picks[index - self.start])]


Chunk = Span | Slice


def plan(spec: DatasetSpec, config: DataConfig, seed: int) -> list[Chunk]:
    """The chunks of a data set, in the order of its rows.

    `#N` draws rows as training does, and keeps them in the order of the file.

    Raises:
        DataError, MissingExtra: as `luthier.data.sources.open_rows`.
    """
    if spec.take is not None:
        rows = open_rows(spec, config)
        return _slices(rows, np.sort(take_indices(len(rows), spec.take, seed)), CHUNK_BYTES)
    if spec.kind != "local":
        return _slices(open_rows(spec, config), None, CHUNK_BYTES)
    chunks: list[Chunk] = []
    for path in files_of(spec):
        if kind_of(path) in SUFFIXES and path.suffix.lower() not in COMPRESSED:
            file = describe(path, str(path), config)
            if file.encoding == "utf-8" and file.layout.kind in ("lines", "text"):
                chunks += _spans(file)
                continue
        rows = open_file(path, config)
        chunks += _slices(rows, None, path.stat().st_size)
    return chunks


def _spans(file: TextFile) -> list[Chunk]:
    """Cut behind the last newline of every CHUNK_BYTES; a longer line makes a longer span."""
    spans: list[Chunk] = []
    start = position = 0
    line = lines = 1
    with file.path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            last = block.rfind(b"\n") + 1
            if last and position + last > start:
                lines += int(np.count_nonzero(np.frombuffer(block, np.uint8, last) == 10))
                spans.append(Span(file, start, position + last, line))
                start, line = position + last, lines
            position += len(block)
    if position > start:
        spans.append(Span(file, start, position, line))
    return spans


def _slices(rows: Rows, picks: NDArray[np.int64] | None, size: int) -> list[Chunk]:
    total = len(rows) if picks is None else len(picks)
    each = min(max(1, CHUNK_BYTES * len(rows) // max(1, size)), _MOST_ROWS)
    share = size // max(1, len(rows))
    return [
        Slice(rows, at, min(at + each, total), share * each, None if picks is None else picks[at : at + each])
        for at in range(0, total, each)
    ]


def total_bytes(chunks: Sequence[Chunk]) -> int:
    """About how much there is to read."""
    return sum(chunk.size for chunk in chunks)
