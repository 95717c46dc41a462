"""One row of a file: its bytes become a mapping, or the fault that keeps them from being one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.records import Fault, Json, Where
from luthier.data.config import BadRows

MAX_DEPTH = 64
"""Deepest nesting of lists and objects in a row; a chat with tool schemas needs about 15."""

_OPENING = re.compile(rb"[\[{]")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read: a mapping or the fault that hides it.

    `repairs` names what was set right while reading: CRLF, a byte order mark and other encodings, all of which lose
    nothing.
    """

    where: Where
    value: dict[str, Json] | Fault
    repairs: tuple[Fault, ...] = ()


class Rows(Protocol):
    """A data set with random access.  Picklable, safe to share between forked processes."""

    @property
    def name(self) -> str:
        """What the set is called in reports."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the bytes read and of the options they are read with; nothing else changes it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How the UTF-8 bytes of a file are cut into rows.

    lines: one JSON value a line.  document: one JSON array, or values one after the other over many lines.
    csv: records under `columns`.  text: one document a line.  whole: the file is one document.
    columns: lines of a token, what else is known of it, and its tag; a blank line ends a sentence, which is a row.
    """

    kind: Literal["lines", "document", "csv", "text", "whole", "columns"]
    delimiter: str = ","
    columns: tuple[str, ...] = ()
    header: bool = False
    quoted: bool = True
    """Whether quotation marks hold cells together; in plain lines with a tab they are text."""


def parse(layout: Layout, data: bytes | None, where: Where, column: int, policy: BadRows) -> Row:
    """Read one row.

    Args:
        data: the row's bytes, UTF-8; None when they were more than the cap and were not kept.
        column: 1-based column of the row's first byte in its line.
        policy: under `strict`, CRLF is a fault.  Bytes that are not UTF-8 always are: nobody knows what they meant.
    """
    if data is None:
        return Row(where, Fault("too_long", where, "the row is longer than max_row_bytes"))
    repairs: list[Fault] = []
    if layout.kind in ("lines", "text") and data.endswith(b"\r"):
        data = data[:-1]
        repairs.append(Fault("crlf", where, "the line ends with CRLF instead of LF"))
        if policy == "strict":
            return Row(where, repairs[0])
    row = _parse_json(data, where, column) if layout.kind in ("lines", "document") else _parse_text(layout, data, where)
    return replace(row, repairs=(*repairs, *row.repairs)) if repairs else row


def plain_row(data: bytes) -> dict[str, Json] | None:
    """The value of a line that is JSON, an object and free of anything to repair or to explain; None for all others,
    which `parse` will judge."""
    if _crowded(data) or b"\\u0000" in data or data.endswith(b"\r"):
        return None
    try:
        value = cast(Json, orjson.loads(data))
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def plain_rows(data: bytes, lines: Sequence[bytes]) -> list[dict[str, Json] | None]:
    """`plain_row` of each line of a stretch of a file; what no line of it has is looked for once, which is faster."""
    codes = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(((codes | 0x20) - 0x7B) <= 1)  # of [ and { and \ and |, four neighbours in ASCII
    found = codes[places]
    letters = codes[np.minimum(places[found == ord("\\")] + 1, len(codes) - 1)]
    if b"\r" in data or ((letters == ord("u")).any() and b"\\u0000" in data):
        return [plain_row(line) for line in lines]
    crowded = _crowded_lines(len(data), lines, places[(found | 0x20) == ord("{")])
    try:
        values = [cast(Json, orjson.loads(line)) for line in lines]
    except orjson.JSONDecodeError:
        return [plain_row(line) for line in lines]
    if set(map(type, values)) - {dict}:
        return [plain_row(line) for line in lines]
    found = cast("list[dict[str, Json] | None]", values)
    for at in crowded:
        found[at] = None
    return found


def _crowded(line: bytes) -> bool:
    """Whether a line has enough brackets to be nested too deeply."""
    return line.count(b"[") + line.count(b"{") > MAX_DEPTH


def _crowded_lines(size: int, lines: Sequence[bytes], brackets: NDArray[np.int64]) -> set[int]:
    """Those of the lines, all of them objects, that are `_crowded`, by number from 0.

    Args:
        size: bytes of the stretch of file that they are from.
        brackets: where in it [ and { stand, int64 [brackets].
    """
    # every line that is an object has one, so that few in all leave no line with many
    if len(brackets) - len(lines) < MAX_DEPTH:
        return set()
    ends = np.cumsum([len(line) + 1 for line in lines])
    if ends[-1] < size:  # there are blank lines between them
        return {at for at, line in enumerate(lines) if _crowded(line)}
    counts = np.diff(np.searchsorted(brackets, ends), prepend=0)
    return set(np.flatnonzero(counts > MAX_DEPTH).tolist())


def _parse_json(data: bytes, where: Where, column: int) -> Row:
    if _too_deep(data):
        return Row(where, Fault("too_deep", where, f"lists and objects are nested deeper than {MAX_DEPTH}"))
    try:
        value = cast(Json, orjson.loads(data))
    except orjson.JSONDecodeError as error:
        return Row(where, _explain(data, error, where, column))
    if not isinstance(value, dict):
        return Row(where, Fault("not_an_object", where, f"a row must be a JSON object, this is {json_type(value)}"))
    if b"\\u0000" in data and any("\0" in text for text in _strings(value)):
        return Row(where, Fault("nul", where, "the row contains the character NUL (\\u0000)"))
    return Row(where, value)


def json_type(value: Json) -> str:
    """What JSON calls a value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"


def _too_deep(data: bytes) -> bool:
    if not _crowded(data):
        return False
    depth = 0
    position = 0
    while position < len(data):  # outside strings at each turn of the loop
        found = STRUCTURE.search(data, position)
        if found is None:
            return False
        position = found.end()
        if _OPENING.match(found[0]):
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif found[0] == b'"':
            position = STRING_REST.match(data, position).end() + 1  # type: ignore[union-attr]  # matches empty too
        elif found[0] != b",":
            depth -= 1
    return False


STRUCTURE = re.compile(rb'["\[\]{},]')
"""What delimits JSON outside of strings."""
STRING_REST = re.compile(rb'[^"\\]*+(?:\\[\s\S][^"\\]*+)*+')
"""The inside of a JSON string up to, not including, its closing quote (or a last lone backslash)."""


def _explain(data: bytes, error: orjson.JSONDecodeError, where: Where, column: int) -> Fault:
    """Find out what is wrong with bytes that are not JSON."""
    invalid = _invalid_utf8(data, where)
    if invalid is not None:
        return invalid
    line = where.line + error.lineno - 1
    place = f"line {line}, column {error.colno + (column - 1 if error.lineno == 1 else 0)}"
    if not data.strip():
        return Fault(
            "malformed_json", where, f"malformed JSON at {place}: a value is missing or the file ends too early"
        )
    if b"\0" in data:
        return Fault("nul", where, f"the row contains a NUL byte ({place})")
    if "surrogate" in error.msg:
        return Fault("lone_surrogate", where, f"half of a surrogate pair at {place}: this is no character")
    return Fault("malformed_json", where, f"malformed JSON at {place}: {error.msg.split(': line ')[0]}")


def _invalid_utf8(data: bytes, where: Where) -> Fault | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return Fault("invalid_utf8", where, f"invalid UTF-8 at byte {error.start + 1} of the row")
    return None


def _parse_text(layout: Layout, data: bytes, where: Where) -> Row:
    invalid = _invalid_utf8(data, where)
    if invalid is not None:
        return Row(where, invalid)
    if b"\0" in data:
        return Row(where, Fault("nul", where, "the row contains a NUL byte"))
    text = data.decode()
    if layout.kind == "columns":
        return _parse_columns(text, where)
    if layout.kind != "csv":
        return Row(where, {"text": text})
    if not layout.quoted:
        cells = text.split(layout.delimiter)
    elif text.count('"') % 2 and "\n" in text:
        return Row(where, Fault("malformed_csv", where, "a quotation mark is opened and never closed"))
    else:
        cells = read_cells(text, layout.delimiter)
    if len(cells) != len(layout.columns):
        number = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
        message = f"{number} where there are {len(layout.columns)} columns"
        return Row(where, Fault("malformed_csv", where, message))
    return Row(where, dict(zip(layout.columns, cells, strict=True)))


def _parse_columns(text: str, where: Where) -> Row:
    """A sentence as its tokens and their tags: the first and the last column."""
    tokens: list[Json] = []
    tags: list[Json] = []
    for number, line in enumerate(text.split("\n")):
        parts = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if line.startswith("-DOCSTART-") or (line.startswith("# ") and len(tokens) == 0 and len(parts) != 2):
            continue
        if len(parts) < 2 or not parts[-1].strip():
            place = Where(where.file, where.line + number)
            return Row(where, Fault("malformed_columns", place, "a line needs a token and a tag"))
        tokens.append(parts[0])
        tags.append(parts[-1].strip())
    if not tokens:
        return Row(where, Fault("malformed_columns", where, "there is no token here"))
    return Row(where, {"tokens": tokens, "tags": tags})


def read_cells(text: str, delimiter: str) -> list[str]:
    """The cells of one CSV record, which may span lines.  A record the csv module refuses gives no cells."""
    try:
        return next(csv_reader(io.StringIO(text, newline="\n"), delimiter, len(text)), [])
    except csv.Error:
        return []


def csv_reader(lines: Iterable[str], delimiter: str, limit: int, *, quoted: bool = True) -> Iterator[list[str]]:
    """The csv module's reader for cells of up to `limit` characters (its own cap, process-wide, is 128 KiB)."""
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
