"""What a worker does first: from a chunk to its rows, with the policy for those that are bad."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import repeat

import orjson

from luthier.base.errors import DataError, LuthierError
from luthier.base.records import Fault, Json, Where
from luthier.data.checks import are_plain, renamed, shape_fault
from luthier.data.config import BadRows
from luthier.data.media import media_fault
from luthier.data.row import Row, plain_rows
from luthier.prepare.chunks import Chunk, Span
from luthier.prepare.origins import Origins
from luthier.prepare.parcel import Batch, Columns, Item, Parcel, Placed, Read, Tally, Value, Work, refusal

TEXT_KEPT = 2000
"""Characters of a rejected row that are kept for people to read."""


@dataclass(frozen=True)
class Reading:
    """How a worker makes items of rows."""

    columns: Mapping[str, str]
    policy: BadRows
    origins: bool = False
    """Whether parcels say where the rows they let through came from."""


@dataclass(frozen=True, slots=True)
class Task:
    """One chunk of one pass."""

    chunk: Chunk
    origins: Origins | None
    """Where the chunk's rows first came from, when an earlier step wrote them."""
    attached: Columns
    first: int
    sound: bool
    """Whether an earlier pass found nothing wrong in the chunk."""


@dataclass(frozen=True)
class Worker:
    """What a worker does with a task: read it, do the work, pack the result."""

    work: Work
    reading: Reading
    first: bool
    """Whether this is the first pass: it checks rows against their shapes, and remembers where they stand."""

    def __call__(self, task: Task) -> Parcel:
        rejected: list[Value] = []
        faulty = Tally()
        try:
            items = self._items(task, rejected, faulty)
            parcel = self.work(Batch(items, task.attached, task.first))
        except LuthierError as error:
            return Parcel(error=refusal(error))
        placed = Placed.of(items) if self.first else None
        parcel.read = Read(len(items), placed, rejected, faulty, not rejected and not faulty.counts)
        return parcel.pack(origins=self.reading.origins)

    def _items(self, task: Task, rejected: list[Value], faulty: Tally) -> list[Item]:
        chunk, origins = task.chunk, task.origins
        if isinstance(chunk, Span) and chunk.quick and not self.reading.columns:
            return self._lines(chunk, task, rejected, faulty)
        rows = chunk.rows()
        if origins is not None:
            rows = (replace(row, where=origins[row.where.line - 1]) for row in rows)
        items = (self._item(row, rejected, faulty) for row in rows)
        return [item for item in items if item is not None]

    def _lines(self, chunk: Span, task: Task, rejected: list[Value], faulty: Tally) -> list[Item]:
        """The rows of JSON lines; those that anything is wrong with are read again with more care."""
        data = chunk.data()
        numbers, lines = chunk.lines(data)
        places: Iterable[tuple[str, int]] = zip(repeat(chunk.name), numbers)
        if task.origins is not None:
            found = (task.origins[number - 1] for number in numbers)
            places = [(where.file, where.line) for where in found]
        check = self.first or self.reading.policy == "drop"
        if task.sound and not check:
            return [Item(file, number, None, raw) for (file, number), raw in zip(places, lines, strict=True)]
        values = plain_rows(data, lines)
        sound = are_plain([value or {} for value in values]) if check else [True] * len(values)
        items: list[Item] = []
        for (file, line), number, raw, value, fine in zip(places, numbers, lines, values, sound, strict=True):
            if value is None or not (fine or _fault(value, Where(file, line)) is None):
                row = replace(chunk.file.row(1, raw, number, 1), where=Where(file, line))
                item = self._item(row, rejected, faulty)
                if item is not None:
                    items.append(item)
            else:
                items.append(Item(file, line, value, raw))
        return items

    def _item(self, row: Row, rejected: list[Value], faulty: Tally) -> Item | None:
        policy, columns = self.reading.policy, self.reading.columns
        for repair in row.repairs:
            faulty.count(repair.code)
            faulty.example(repair.code, row.where, message=repair.message)
        value = row.value
        if isinstance(value, Fault):
            rejected.append(_reject(value, row, policy))
            return None
        if columns:
            value = renamed(value, columns)
        fault = _fault(value, row.where) if self.first or policy == "drop" else None
        if fault is not None:
            if policy != "fix":
                rejected.append(_reject(fault, row, policy))
                return None
            faulty.count(fault.code)
            faulty.example(fault.code, row.where, path=fault.path, message=fault.message)
        return Item(row.where.file, row.where.line, value)


def _fault(value: Value, where: Where) -> Fault | None:
    """What a row says against its own shape, or what is wrong with the pictures it names."""
    return shape_fault(value, where) or media_fault(value, where)


def _reject(fault: Fault, row: Row, policy: BadRows) -> Value:
    if policy == "strict":
        fix = "Repair the row, or use --bad_rows fix or drop"
        raise DataError(fault.message, where=f"{fault.where} {fault.path}".strip(), code=fault.code, fix=fix)
    text = None if isinstance(row.value, Fault) else orjson.dumps(row.value).decode(errors="replace")[:TEXT_KEPT]
    line: dict[str, Json] = {"file": fault.where.file, "line": fault.where.line, "code": fault.code}
    return {**line, "path": fault.path, "message": fault.message, "row": text}
