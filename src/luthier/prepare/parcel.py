"""What goes to a worker and what comes back: a batch of rows, and a parcel of rows, columns and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(slots=True)
class Item:
    """One row: the whole of it as it was read, and where it stands."""

    where: Where
    value: Value


@dataclass(slots=True)
class Batch:
    """The rows of one chunk, in order, with what was attached to each of them (arrays [rows, ...])."""

    items: list[Item]
    attached: Columns = field(default_factory=dict[str, Any])
    first: int = 0
    """Number of the first row among all rows; right from the second pass on, 0 in the first one."""


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

    lines: dict[str, bytearray] = field(default_factory=dict[str, bytearray])
    """Rows that go on, as JSON lines, by the name of the output they go to ("" when there is one)."""
    columns: Columns = field(default_factory=dict[str, Any])
    """One value for each row of the batch."""
    tally: Tally = field(default_factory=Tally)
    rows: int = 0
    """Usable rows of the batch; filled in by the frame."""
    files: tuple[str, ...] = ()
    """Files the batch's rows stand in; this and the next two are filled in by the frame, in its first pass."""
    file: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Position in `files` of each row."""
    line: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    """Line of each row."""
    origins: dict[str, list[Where]] = field(default_factory=dict[str, list[Where]])
    """Where each row in `lines` came from, by output."""
    rejected: list[Value] = field(default_factory=list[Value])
    """Rows that cannot be used, as lines of a rejected file; filled in by the frame."""
    faulty: Tally = field(default_factory=Tally)
    """Faults of usable rows, and repairs made while reading; filled in by the frame."""
    error: Mapping[str, Any] | None = None
    """What ended the work; see `refusal`."""

    def keep(self, item: Item, value: Mapping[str, Json] | None = None, part: str = "") -> None:
        """A row goes on to the output named `part`: as it was, or as `value`, which was made from it."""
        self.keep_line(item.where, orjson.dumps(item.value if value is None else value), part)

    def keep_line(self, where: Where, line: bytes, part: str = "") -> None:
        """A row that is JSON text already goes on; `where` is the place it came from."""
        held = self.lines.get(part)
        if held is None:
            held, self.origins[part] = self.lines.setdefault(part, bytearray()), []
        held += line
        held += b"\n"
        self.origins[part].append(where)

    def drop(self, item: Item, reason: str, **shown: Json) -> None:
        """A row ends here: counted under its reason, with an example, and written where removed rows go."""
        self.tally.count(reason)
        self.tally.example(reason, item.where, row=orjson.dumps(item.value).decode(), **shown)
        origin: Value = {"file": item.where.file, "line": item.where.line, "reason": reason, **shown}
        self.keep_line(item.where, orjson.dumps({**origin, "row": item.value}), REMOVED)


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
    """Raise the error that a worker met."""
    raise fields["kind"](fields["what"], where=fields["where"], fix=fields["fix"], code=fields["code"])
