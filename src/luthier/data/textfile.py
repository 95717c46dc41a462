"""A text file as rows with random access: an index of where each row lies, over bytes that are mapped, not loaded.

Plain UTF-8 files are read where they are.  Compressed files and other encodings are first written once, as UTF-8,
into the cache, under the hash of their content.
"""

from __future__ import annotations

import csv
import hashlib
import mmap
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.errors import DataError
from luthier.base.records import Fault, Where
from luthier.base.sealed import sha256_of
from luthier.data import tables
from luthier.data.config import BadRows, DataConfig
from luthier.data.cut import BLANK, Cut, cut
from luthier.data.encoding import COMPRESSED, detect, utf8_blocks
from luthier.data.guess import guess, is_number
from luthier.data.row import Layout, Row, csv_reader, parse

_VERSION = 2
"""Of the index; another version never reads this one's."""
_HEAD = 2**20
_KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "whole",
    ".conll": "columns",
    ".bio": "columns",
    ".iob": "columns",
    ".bmes": "columns",
}
SUFFIXES = tuple(_KINDS)
_NAMES = frozenset(
    """text label content instruction input output prompt completion query response question answer messages
    conversations conversation chosen rejected reward id""".split()  # noqa: SIM905  (a list is ten lines)
)
"""Column names that tell a header from a first row of two cells."""


def cache_root(config: DataConfig) -> Path:
    """Where prepared data is kept: the setting, $LUTHIER_CACHE, or ~/.cache/luthier."""
    return Path(config.cache_dir or os.environ.get("LUTHIER_CACHE") or Path.home() / ".cache" / "luthier")


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds, without the one that says how it is compressed, in lower case."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    inner = Path(name.removesuffix(".txt")).suffix
    return inner if _KINDS.get(inner) == "columns" else Path(name).suffix


def kind_of(path: Path) -> str:
    """As `suffix_of`; a file whose name says nothing known is looked into."""
    suffix = suffix_of(path)
    if suffix in SUFFIXES or suffix in tables.SUFFIXES or not path.is_file():
        return suffix
    return guess(path) or suffix


@dataclass(frozen=True, slots=True)
class TextFile:
    """What has to be known to read a text file: how its bytes become UTF-8, and UTF-8 becomes rows."""

    path: Path
    name: str
    encoding: str
    layout: Layout
    limit: int
    policy: BadRows

    def cuts(self) -> Iterator[Cut]:
        """Every row, in one pass."""
        return cut(utf8_blocks(self.path, self.encoding), self.layout, self.limit)

    def row(self, number: int, data: bytes | None, line: int, column: int) -> Row:
        """Parse row `number` (from 0); the first one tells what was done to the file as a whole."""
        row = parse(self.layout, data, Where(self.name, line), column, self.policy)
        if number > 0 or self.encoding == "utf-8":
            return row
        return replace(row, repairs=(_encoding_fault(self.encoding, Where(self.name, line)), *row.repairs))


def _encoding_fault(encoding: str, where: Where) -> Fault:
    if encoding == "utf-8-sig":
        return Fault("byte_order_mark", where, "the file starts with a byte order mark")
    return Fault("not_utf8", where, f"the file is not UTF-8; it was read as {encoding}")


def describe(path: Path, name: str, config: DataConfig) -> TextFile:
    """Find out how a text file is to be read.

    Raises:
        DataError: `empty_file`, `unreadable_file`, `undecodable`; under `strict` also `not_utf8`, `byte_order_mark`.
    """
    encoding = detect(path)
    if encoding != "utf-8" and config.bad_rows == "strict":
        fault = _encoding_fault(encoding, Where(name, 1))
        fix = "Convert it to plain UTF-8, or set bad_rows to fix"
        raise DataError(fault.message, where=name, fix=fix, code=fault.code)
    head = b""
    for block in utf8_blocks(path, encoding):
        head += block
        if len(head) >= _HEAD:
            break
    if not head.strip(BLANK) and len(head) < _HEAD:
        raise DataError("the file is empty", where=name, code="empty_file")
    layout = _layout(kind_of(path), head, name, config)
    return TextFile(path, name, encoding, layout, config.max_row_bytes, config.bad_rows)


def _layout(suffix: str, head: bytes, name: str, config: DataConfig) -> Layout:
    match _KINDS[suffix]:
        case "json":
            return Layout("lines" if _is_lines(head) else "document")
        case "csv":
            return _table_layout(suffix, head.decode("utf-8", "replace"), name, config)
        case "text":
            return Layout("text")
        case "columns":
            return Layout("columns", columns=("tokens", "tags"))
        case _:
            return Layout("whole")


def _is_lines(head: bytes) -> bool:
    """Whether JSON is one value a line: not an array, and not an object that goes on over several lines."""
    first, _, rest = head.strip(BLANK).partition(b"\n")
    first = first.strip(BLANK)
    if first.startswith(b"["):
        return False
    if not first.startswith(b"{") or first.endswith(b"}"):
        return True
    # The first line is an object that is not closed: damage if the next line is a row, pretty-printing if it is not.
    return rest.startswith(b"{") or not rest


def _table_layout(suffix: str, head: str, name: str, config: DataConfig) -> Layout:
    line = head.lstrip().partition("\n")[0]
    delimiter = "\t" if suffix == ".tsv" else ","
    if delimiter not in line:
        delimiter = next((mark for mark in "\t;," if mark in line), delimiter)
    try:
        records = csv_reader((line + "\n" for line in head.split("\n")), delimiter, _HEAD)
        columns = tuple(cell.strip() for cell in next((cells for cells in records if cells), []))
    except csv.Error as error:
        raise DataError(f"the header is not CSV: {error}", where=name, code="malformed_csv") from error
    known = _NAMES | {column.lower() for column in (*config.columns, *config.columns.values())}
    if len(columns) == 2 and not any(column.lower() in known for column in columns):
        rows = [line.split(delimiter, 1) for line in head.split("\n")[:1000] if delimiter in line]
        names = _headless(rows)
        if _is_row(columns, names.index("label"), rows[1:]):
            return Layout("csv", delimiter, names, quoted=delimiter != "\t")
    if len(set(columns)) < len(columns):
        raise DataError("two columns have the same name", where=name, fix="Rename one", code="malformed_csv")
    return Layout("csv", delimiter, columns, header=True)


def _is_row(columns: tuple[str, ...], label: int, below: Sequence[Sequence[str]]) -> bool:
    """Whether two cells are a row and no header: one is a number or a sentence, or the label is met again further down.

    Of the two mistakes, a header trained as a row is the one that nobody would see.
    """
    again = columns[label] in {row[label].strip().strip('"') for row in below}
    return again or not all(len(cell) <= 30 and len(cell.split()) <= 2 and not is_number(cell) for cell in columns)


def _headless(rows: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Names for two columns without a header: the label is the one with the fewer different values."""
    first, second = ({row[number] for row in rows} for number in (0, 1))
    return ("label", "text") if len(first) < len(second) and len(first) * 2 <= len(rows) else ("text", "label")


def stream_text(file: TextFile) -> Iterator[Row]:
    """Every row in order, from one pass over the file."""
    for number, (_, _, line, column, data) in enumerate(file.cuts()):
        yield file.row(number, data, line, column)


@dataclass
class TextRows:
    """Rows of one text file, memory-mapped.  `file.path` is what the user named, `source` what is mapped."""

    file: TextFile
    source: Path
    index_path: Path
    fingerprint: str
    _maps: tuple[mmap.mmap, NDArray[np.int64]] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The file's name as the user gave it."""
        return self.file.name

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}

    def _open(self) -> tuple[mmap.mmap, NDArray[np.int64]]:
        if self._maps is None:
            with self.source.open("rb") as stream:
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps = data, np.load(self.index_path, mmap_mode="r", allow_pickle=False)
        return self._maps

    def __len__(self) -> int:
        return len(self._open()[1])

    def __getitem__(self, index: int) -> Row:
        data, table = self._open()
        if not 0 <= index < len(table):
            raise IndexError(index)
        start, end, line, column = (int(number) for number in table[index])
        return self.file.row(index, data[start:end] if end - start <= self.file.limit else None, line, column)


def open_text(path: Path, name: str, config: DataConfig) -> TextRows:
    """Index a text file, or find the index made earlier for the same bytes.

    Raises:
        DataError: as `describe`, and `empty_file` when there is no row.
    """
    file = describe(path, name, config)
    options = [_VERSION, sha256_of(path), file.encoding, repr(file.layout), file.limit]
    key = hashlib.sha256(orjson.dumps(options)).hexdigest()
    folder = cache_root(config) / "rows" / key[:2] / key
    plain = file.encoding == "utf-8" and path.suffix.lower() not in COMPRESSED
    if not (folder / "index.npy").is_file():
        _build(file, folder, copy=not plain)
    fingerprint = hashlib.sha256(f"{key} {file.policy}".encode()).hexdigest()
    rows = TextRows(file, path.absolute() if plain else folder / "text", folder / "index.npy", fingerprint)
    if len(rows) == 0:
        raise DataError("the file holds no rows", where=name, code="empty_file")
    return rows


def _build(file: TextFile, folder: Path, *, copy: bool) -> None:
    """Write the index, and the text where the file itself cannot be mapped.  Whoever is first to finish wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as made:
            staged = Path(made) / "index"
            staged.mkdir()
            if copy:
                with (staged / "text").open("wb") as stream:
                    for block in utf8_blocks(file.path, file.encoding):
                        stream.write(block)
                    _sync(stream)
            table = array("q")
            for start, end, line, column, _ in file.cuts():
                table.extend((start, end, line, column))
            with (staged / "index.npy").open("wb") as stream:
                np.save(stream, np.frombuffer(table, dtype=np.int64).reshape(-1, 4), allow_pickle=False)
                _sync(stream)
            if not folder.exists():
                staged.rename(folder)
    except OSError as error:
        fix = f"{error.strerror}: free some space there, or choose another place with --cache_dir or $LUTHIER_CACHE"
        raise DataError("the cache cannot be written", where=str(folder), fix=fix, code="cache_unwritable") from error


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
