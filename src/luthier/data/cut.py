"""Cut a stream of UTF-8 bytes into rows, without ever holding more than one row and one block.

A cut remembers where a row lies, so that the row can be read again from the file alone.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from luthier.data.row import STRING_REST, STRUCTURE, Layout, csv_reader

BLANK = b" \t\r\n"
"""JSON's white space."""
_BLANKS = re.compile(rb"[ \t\r\n]*")


class Cut(NamedTuple):
    """One row: bytes [start, end) of the stream, 1-based line and column of its first byte.

    `data` is None for a row longer than the cap, of which nothing was kept.
    """

    start: int
    end: int
    line: int
    column: int
    data: bytes | None


def cut(blocks: Iterable[bytes], layout: Layout, limit: int) -> Iterator[Cut]:
    """All rows of a stream; `limit` is the most bytes a row may have to be kept."""
    match layout.kind:
        case "lines" | "text":
            return (line for line in _lines(blocks, limit) if line.data is None or line.data.strip(BLANK))
        case "document":
            return _Document(limit).cuts(blocks)
        case "csv":
            return _records(blocks, limit, layout)
        case "columns":
            return _sentences(blocks, limit)
        case "whole":
            return _whole(blocks, limit)


class _Held:
    """Bytes of an unfinished row; once they pass the limit only their number is kept."""

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self.parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        self.size += len(part)
        if self.size <= self.limit:
            self.parts.append(part)
        else:
            self.parts.clear()

    def take(self) -> bytes | None:
        data = b"".join(self.parts) if self.size <= self.limit else None
        self.parts.clear()
        self.size = 0
        return data


def _lines(blocks: Iterable[bytes], limit: int) -> Iterator[Cut]:
    """Every line without its newline, blank ones too."""
    start, line = 0, 1
    held = _Held(limit)
    for block in blocks:
        *pieces, rest = block.split(b"\n")
        for piece in pieces:
            held.add(piece)
            end = start + held.size
            yield Cut(start, end, line, 1, held.take())
            start, line = end + 1, line + 1
        held.add(rest)
    if held.size:
        yield Cut(start, start + held.size, line, 1, held.take())


def _whole(blocks: Iterable[bytes], limit: int) -> Iterator[Cut]:
    held = _Held(limit)
    for block in blocks:
        held.add(block)
    if held.size:
        yield Cut(0, held.size, 1, 1, held.take())


def _sentences(blocks: Iterable[bytes], limit: int) -> Iterator[Cut]:
    """Lines up to a blank one."""
    taken: list[Cut] = []
    for line in _lines(blocks, limit):
        if line.data is None or line.data.strip(BLANK):
            taken.append(line)
            continue
        if taken:
            yield _joined(taken, limit)
            taken = []
    if taken:
        yield _joined(taken, limit)


def _joined(lines: list[Cut], limit: int) -> Cut:
    """Several lines as one row."""
    first, last = lines[0], lines[-1]
    parts = [line.data for line in lines if line.data is not None]
    whole = len(parts) == len(lines) and last.end - first.start <= limit
    return Cut(first.start, last.end, first.line, 1, b"\n".join(parts) if whole else None)


def _records(blocks: Iterable[bytes], limit: int, layout: Layout) -> Iterator[Cut]:
    """CSV records, which go on over several lines inside quotation marks."""
    taken: list[Cut] = []

    def lines() -> Iterator[str]:
        for line in _lines(blocks, limit):
            taken.append(line)
            yield (line.data or b"").decode("utf-8", "replace") + "\n"

    reader = csv_reader(lines(), layout.delimiter, limit, quoted=layout.quoted)
    skip = layout.header
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:  # the reader goes on with the next line; parsing the record again will tell
            cells = [""]
        if cells is None:
            return
        record = _joined(taken, limit)
        taken.clear()
        if cells and skip:
            skip = False
        elif cells or record.data is None:
            yield record


class _Document:
    """The elements of one JSON array, or JSON values one after the other.

    Only strings and brackets are looked at.  Whatever is not JSON ends up inside some row, so that parsing the row
    reports it: an array cut short gives an empty last row, bytes behind an array a row that begins with its bracket.
    """

    def __init__(self, limit: int):
        self.held = _Held(limit)
        self.base = 0  # bytes before the current block
        self.line, self.line_start = 1, 0
        self.counted = 0  # bytes of the block whose newlines are counted
        self.begin: int | None = None  # where the current row begins in the block; None between rows
        self.mark = (0, 1, 1)  # start, line, column of the current row
        self.rows = 0

    def cuts(self, blocks: Iterable[bytes]) -> Iterator[Cut]:
        array: bool | None = None
        closed = quoted = escaped = False
        depth = 0
        for block in blocks:
            position = 0
            while position < len(block):
                if self.begin is None:
                    found = _BLANKS.match(block, position)
                    position = found.end() if found else position
                    if position == len(block):
                        break
                    self._open(block, position)
                    if array is None:
                        array = block[position : position + 1] == b"["
                        if array:
                            depth, position, self.begin = 1, position + 1, None
                            continue
                if closed:
                    break
                if escaped:
                    escaped, position = False, position + 1
                elif quoted:
                    found = STRING_REST.match(block, position)
                    position = found.end() if found else position
                    if position < len(block):
                        quoted = escaped = block[position : position + 1] == b"\\"
                        position += 1
                else:
                    found = STRUCTURE.search(block, position)
                    if found is None:
                        break
                    at, position = found.span()
                    match found[0]:
                        case b'"':
                            quoted = True
                        case b"[" | b"{":
                            depth += 1
                        case b",":
                            if array and depth == 1:
                                yield self._close(block, at)
                        case b"]" if array and depth == 1:
                            row = self._close(block, at)
                            if self.rows > 1 or row.end > row.start:
                                yield row
                            self._open(block, at)
                            closed = True
                        case _ if depth > (1 if array else 0):
                            depth -= 1
                            if depth == 0:
                                yield self._close(block, position)
                        case _:
                            pass
            self._next(block)
        if self.begin is not None:
            start, line, column = self.mark
            data = self.held.take()
            if not (closed and data is not None and data.strip(BLANK) == b"]"):
                yield Cut(start, self.base, line, column, data)
        if array and not closed:
            yield Cut(self.base, self.base, self.line, self.base - self.line_start + 1, b"")

    def _open(self, block: bytes, at: int) -> None:
        """A row begins at block[at]."""
        self._count(block, at)
        self.begin = at
        self.mark = (self.base + at, self.line, self.base + at - self.line_start + 1)

    def _close(self, block: bytes, at: int) -> Cut:
        """The current row ends before block[at]."""
        self.held.add(block[self.begin : at])
        self.begin = None
        self.rows += 1
        start, line, column = self.mark
        data = self.held.take()
        data = data if data is None else data.rstrip(BLANK)
        return Cut(start, self.base + at if data is None else start + len(data), line, column, data)

    def _next(self, block: bytes) -> None:
        """Go on to the next block, keeping what the current row has in this one."""
        if self.begin is not None:
            self.held.add(block[self.begin :])
            self.begin = 0
        self._count(block, len(block))
        self.base += len(block)
        self.counted = 0

    def _count(self, block: bytes, to: int) -> None:
        newlines = block.count(b"\n", self.counted, to)
        if newlines:
            self.line += newlines
            self.line_start = self.base + block.rindex(b"\n", self.counted, to) + 1
        self.counted = to
