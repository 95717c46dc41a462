"""What a worker does first: from a chunk to its rows, with the policy for those that are bad."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import orjson

from luthier.base.errors import DataError, LuthierError
from luthier.base.records import Fault, Json
from luthier.data.checks import renamed, shape_fault
from luthier.data.config import BadRows
from luthier.data.row import Row, plain_row
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
            items = list(self._items(task, rejected, faulty))
            parcel = self.work(Batch(items, task.attached, task.first))
        except LuthierError as error:
            return Parcel(error=refusal(error))
        placed = Placed.of_items(items) if self.first else None
        parcel.read = Read(len(items), placed, rejected, faulty, not rejected and not faulty.counts)
        return parcel.pack(origins=self.reading.origins)

    def _items(self, task: Task, rejected: list[Value], faulty: Tally) -> Iterator[Item]:
        chunk, origins = task.chunk, task.origins
        if not (isinstance(chunk, Span) and chunk.quick) or self.reading.columns:
            for row in chunk.rows():
                item = self._item(
                    row if origins is None else replace(row, where=origins[row.where.line - 1]), rejected, faulty
                )
                if item is not None:
                    yield item
            return
        check = self.first or self.reading.policy == "drop"
        for line, raw in chunk.lines():
            where = None if origins is None else origins[line - 1]
            file, number = (chunk.name, line) if where is None else (where.file, where.line)
            if task.sound and not check:
                yield Item(file, number, None, raw)
                continue
            value = plain_row(raw)
            if value is None or (check and shape_fault(value, None)):
                row = chunk.file.row(1, raw, line, 1)
                item = self._item(row if where is None else replace(row, where=where), rejected, faulty)
                if item is not None:
                    yield item
            else:
                yield Item(file, number, value, raw)

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
        fault = shape_fault(value, row.where) if self.first or policy == "drop" else None
        if fault is not None:
            if policy != "fix":
                rejected.append(_reject(fault, row, policy))
                return None
            faulty.count(fault.code)
            faulty.example(fault.code, row.where, path=fault.path, message=fault.message)
        return Item(row.where.file, row.where.line, value)


def _reject(fault: Fault, row: Row, policy: BadRows) -> Value:
    if policy == "strict":
        fix = "Repair the row, or use --bad_rows fix or drop"
        raise DataError(fault.message, where=f"{fault.where} {fault.path}".strip(), code=fault.code, fix=fix)
    text = None if isinstance(row.value, Fault) else orjson.dumps(row.value).decode(errors="replace")[:TEXT_KEPT]
    line: dict[str, Json] = {"file": fault.where.file, "line": fault.where.line, "code": fault.code}
    return {**line, "path": fault.path, "message": fault.message, "row": text}
