"""What goes to a worker and what comes back: a batch of rows, and a parcel of rows, columns and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.errors import LuthierError
from luthier.base.records import Json, Where

EXAMPLES = 5
"""Examples that are kept of each thing counted, the first ones in the order of the rows."""
EXAMPLE_CHARACTERS = 300
REMOVED = "removed"
"""Name of the output that takes rows which were left out, when somebody wants them."""

Value = dict[str, Json]
Columns = dict[str, NDArray[Any]]


def packed(value: object, option: int | None = None) -> bytes:
    """A value as JSON that takes no more room than it has bytes, for lines of which many are held.

    What orjson returns keeps the page of memory it was written to (4 KiB, orjson 3.13), however short it is.

    Args:
        option: as for `orjson.dumps`.
    """
    return b"%b" % orjson.dumps(value, option=option)


class Item:
    """One row: the whole of it, and where it stands.

    A row of JSON lines keeps its bytes, so that what is not changed is written as it was; once a chunk is known to be
    sound they are parsed only when somebody looks at the value.
    """

    __slots__ = ("_value", "file", "line", "raw")

    def __init__(self, file: str, line: int, value: Value | None, raw: bytes | None = None):
        self.file, self.line, self.raw, self._value = file, line, raw, value

    @property
    def value(self) -> Value:
        """The row.  Make a new one to change it; others may hold this one."""
        if self._value is None:
            self._value = cast(Value, orjson.loads(self.raw or b"{}"))
        return self._value

    @property
    def known(self) -> Value | None:
        """The row, if somebody has looked at it already and it is what its bytes say."""
        return None if self.raw is None else self._value

    @property
    def where(self) -> Where:
        """The row's place."""
        return Where(self.file, self.line)

    def json(self) -> bytes:
        """The row as JSON, without a newline."""
        return packed(self.value) if self.raw is None else self.raw


@dataclass(slots=True)
class Batch:
    """The rows of one chunk, in order, with what was attached to each of them (arrays [rows, ...])."""

    items: list[Item]
    attached: Columns = field(default_factory=dict[str, Any])
    first: int = 0
    """Number of the first row among all rows; right from the second pass on, 0 in the first one."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where rows stand, column by column."""

    files: tuple[str, ...]
    file: NDArray[np.int32]
    """Position in `files`, [rows]."""
    line: NDArray[np.uint32]
    """1-based, [rows]."""

    @classmethod
    def of(cls, places: Sequence[Where | Item]) -> Placed:
        """The places of rows."""
        lines = np.array([place.line for place in places], np.uint32)
        names = [place.file for place in places]
        files = {file: number for number, file in enumerate(dict.fromkeys(names))}
        if len(files) <= 1:
            return cls(tuple(files), np.zeros(len(places), np.int32), lines)
        return cls(tuple(files), np.array([files[file] for file in names], np.int32), lines)


@dataclass(slots=True)
class Tally:
    """Counts by name, with a few examples each.  Tallies of chunks are added up in the order of the rows."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    examples: dict[str, list[Value]] = field(default_factory=dict[str, Any])

    def count(self, name: str, n: int = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + n

    def example(self, name: str, where: Where, **shown: Json) -> None:
        """Keep an example of `name` (texts are cut to 300 characters), unless there are enough."""
        kept = self.examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            cut = {key: value[:EXAMPLE_CHARACTERS] if isinstance(value, str) else value for key, value in shown.items()}
            kept.append({"file": where.file, "line": where.line, **cut})

    def add(self, other: Tally) -> None:
        """Take in the tally of later rows."""
        for name, n in other.counts.items():
            self.count(name, n)
        for name, shown in other.examples.items():
            kept = self.examples.setdefault(name, [])
            kept += shown[: EXAMPLES - len(kept)]


@dataclass(slots=True)
class Parcel:
    """What a worker makes of a batch."""

    rows: dict[str, list[Item]] = field(default_factory=dict[str, Any])
    """Rows that go on, by the name of the output they go to ("" when there is one), with what they came from; see
    `pack`."""
    lines: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """The same as JSON lines; see `pack`."""
    columns: Columns = field(default_factory=dict[str, Any])
    """One value for each row of the batch."""
    tally: Tally = field(default_factory=Tally)
    read: Read | None = None
    """What reading the batch showed; filled in by the frame."""
    written: dict[str, int] = field(default_factory=dict[str, int])
    """Rows in `lines`; see `pack`."""
    placed: dict[str, Placed] = field(default_factory=dict[str, Placed])
    """The origins of rows in `lines`, when they are wanted; see `pack`."""
    error: Mapping[str, Any] | None = None
    """What ended the work; see `refusal`."""
    then: Parcel | None = None
    """What the next verb made of the rows that go on; see `Worker.then`."""

    def keep(self, item: Item, value: Mapping[str, Json] | None = None, part: str = "") -> None:
        """A row goes on to the output named `part`: as it was, or as `value`, which was made from it."""
        self.keep_all([item if value is None else Item(item.file, item.line, None, packed(value))], part)

    def keep_line(self, file: str, line: int, row: bytes, part: str = "") -> None:
        """A row that is JSON text already (see `packed`), and that came from `file` and `line`, goes on."""
        self.keep_all([Item(file, line, None, row)], part)

    def keep_all(self, items: Sequence[Item], part: str = "") -> None:
        """Rows go on as they were."""
        if items:
            self.rows.setdefault(part, []).extend(items)

    def values(self, part: str) -> list[Any]:
        """What `keep_line` has kept under a name, once it is packed."""
        return [orjson.loads(line) for line in self.lines.get(part, b"").split(b"\n")[:-1]]

    def drop(self, item: Item, reason: str, **shown: Json) -> None:
        """A row ends here: counted under its reason, with an example, and written where removed rows go."""
        self.tally.count(reason)
        self.tally.example(reason, item.where, row=item.json().decode(), **shown)
        origin: Value = {"file": item.file, "line": item.line, "reason": reason, **shown}
        self.keep(item, {**origin, "row": item.value}, REMOVED)

    def pack(self, *, origins: bool) -> Parcel:
        """Make the parcel small for its way: lines and counts, and the origins as columns if they are wanted."""
        self.written = {part: len(items) for part, items in self.rows.items()}
        self.placed = {part: Placed.of(items) for part, items in self.rows.items()} if origins else {}
        for part, items in self.rows.items():
            # a last one without anything in it ends the last line
            self.lines[part] = b"\n".join([*(item.json() if item.raw is None else item.raw for item in items), b""])
        self.rows = {}
        return self


@dataclass(slots=True)
class Read:
    """What reading a batch showed."""

    rows: int
    """Usable rows."""
    placed: Placed | None
    """Where they stand; in the first pass only."""
    rejected: list[Value]
    """Rows that cannot be used, as lines of a rejected file."""
    faulty: Tally
    """Faults of usable rows, and repairs made while reading."""
    sound: bool
    """Whether every line of the chunk is a row that can be used as it is."""


Work = Callable[[Batch], Parcel]
"""What is done to a batch.  It is sent to other processes, so it is a function of a module, a `functools.partial`, or
an instance of a dataclass with `__call__`."""


def refusal(error: LuthierError) -> dict[str, Any]:
    """An error as values that can travel; `raise_again` makes it an error again."""
    return {
        "kind": type(error),
        "what": error.what,
        "where": error.where,
        "fix": error.fix,
        "code": error.code,
    }


def raise_again(fields: Mapping[str, Any]) -> None:
    """Raise the error that a worker met; kinds that are made of other words are put together of what they hold."""
    error: LuthierError = fields["kind"].__new__(fields["kind"])
    LuthierError.__init__(error, fields["what"], where=fields["where"], fix=fields["fix"], code=fields["code"])
    raise error
