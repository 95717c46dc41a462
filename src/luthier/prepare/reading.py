"""What a worker does first: from a chunk to its rows, with the policy for those that are bad."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

import orjson

from luthier.base.errors import DataError, LuthierError
from luthier.base.records import Fault, Json, Where
from luthier.data.checks import are_plain, renamed, shape_fault
from luthier.data.config import BadRows
from luthier.data.media import media_fault
from luthier.data.row import Layout, Row, parse, plain_rows
from luthier.prepare.chunks import Chunk, Span
from luthier.prepare.origins import Origins
from luthier.prepare.parcel import Batch, Columns, Item, Parcel, Placed, Read, Tally, Value, Work, refusal

TEXT_KEPT = 2000
"""Characters of a rejected row that are kept for people to read."""
_LINES = Layout("lines")


@dataclass(frozen=True)
class Reading:
    """How a worker makes items of rows."""

    columns: Mapping[str, str]
    policy: BadRows
    limit: int
    """Most bytes of a row."""
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


@dataclass(slots=True)
class _Notes:
    """What is wrong with the rows of a batch."""

    rejected: list[Value] = field(default_factory=list[Value])
    """Rows that cannot be used, as lines of a rejected file."""
    faulty: Tally = field(default_factory=Tally)
    """Faults of rows that can, and repairs."""

    @property
    def sound(self) -> bool:
        """Whether nothing is."""
        return not self.rejected and not self.faulty.counts


@dataclass(frozen=True)
class Worker:
    """What a worker does with a task: read it, do the work, pack the result."""

    work: Work
    reading: Reading
    first: bool
    """Whether this is the first pass: it checks rows against their shapes, and remembers where they stand."""
    then: Worker | None = None
    """The first pass of the verb behind this one, which reads the rows that go on before they are written."""

    def __call__(self, task: Task) -> Parcel:
        notes = _Notes()
        try:
            return self._done(Batch(self._items(task, notes), task.attached, task.first), notes)
        except LuthierError as error:
            return Parcel(error=refusal(error))

    def follow(self, rows: Sequence[Item]) -> Parcel:
        """The same for rows that another worker lets through."""
        notes = _Notes()
        try:
            lines = [item.json() for item in rows]
            fits = [len(line) <= self.reading.limit for line in lines]
            values = [item.known if short else None for item, short in zip(rows, fits, strict=True)]
            unknown = [at for at, value in enumerate(values) if value is None and fits[at]]
            unread = [lines[at] for at in unknown]
            for at, value in zip(unknown, plain_rows(b"\n".join(unread), unread), strict=True):
                values[at] = value
            places = [(item.file, item.line) for item in rows]
            return self._done(Batch(self._judged(_LINES, places, lines, values, notes)), notes)
        except LuthierError as error:
            return Parcel(error=refusal(error))

    def _done(self, batch: Batch, notes: _Notes) -> Parcel:
        parcel = self.work(batch)
        placed = Placed.of(batch.items) if self.first else None
        parcel.read = Read(len(batch.items), placed, notes.rejected, notes.faulty, notes.sound)
        if self.then is not None and "" in parcel.rows:
            parcel.then = self.then.follow(parcel.rows[""])
        return parcel.pack(origins=self.reading.origins)

    def _items(self, task: Task, notes: _Notes) -> list[Item]:
        chunk, origins = task.chunk, task.origins
        if isinstance(chunk, Span) and chunk.quick and not self.reading.columns:
            return self._lines(chunk, task, notes)
        rows = chunk.rows()
        if origins is not None:
            rows = (replace(row, where=origins[row.where.line - 1]) for row in rows)
        items = (self._item(row, notes) for row in rows)
        return [item for item in items if item is not None]

    def _lines(self, chunk: Span, task: Task, notes: _Notes) -> list[Item]:
        """The rows of JSON lines."""
        data = chunk.data()
        numbers, lines = chunk.lines(data)
        places: Iterable[tuple[str, int]] = zip(repeat(chunk.name), numbers)
        if task.origins is not None:
            places = task.origins.places(numbers)
        if task.sound and not self._checks:
            return [Item(file, number, None, raw) for (file, number), raw in zip(places, lines, strict=True)]
        return self._judged(chunk.file.layout, places, lines, plain_rows(data, lines), notes)

    @property
    def _checks(self) -> bool:
        """Whether rows are held against their shapes."""
        return self.first or self.reading.policy == "drop"

    def _judged(
        self,
        layout: Layout,
        places: Iterable[tuple[str, int]],
        lines: Sequence[bytes],
        values: Sequence[Value | None],
        notes: _Notes,
    ) -> list[Item]:
        """Lines as rows; those that anything is wrong with are read again with more care."""
        sound = are_plain([value or {} for value in values]) if self._checks else [True] * len(values)
        if None not in values and all(sound):
            return [Item(*place, value, raw) for place, value, raw in zip(places, values, lines, strict=True)]
        items: list[Item] = []
        for (file, line), raw, value, fine in zip(places, lines, values, sound, strict=True):
            if value is None or not (fine or _fault(value, Where(file, line)) is None):
                item = self._item(self._parsed(layout, raw, Where(file, line)), notes)
                if item is not None:
                    items.append(item)
            else:
                items.append(Item(file, line, value, raw))
        return items

    def _parsed(self, layout: Layout, raw: bytes, where: Where) -> Row:
        return parse(layout, raw if len(raw) <= self.reading.limit else None, where, 1, self.reading.policy)

    def _item(self, row: Row, notes: _Notes) -> Item | None:
        policy, columns = self.reading.policy, self.reading.columns
        for repair in row.repairs:
            notes.faulty.count(repair.code)
            notes.faulty.example(repair.code, row.where, message=repair.message)
        value = row.value
        if isinstance(value, Fault):
            notes.rejected.append(_reject(value, row, policy))
            return None
        if columns:
            value = renamed(value, columns)
        fault = _fault(value, row.where) if self._checks else None
        if fault is not None:
            if policy != "fix":
                notes.rejected.append(_reject(fault, row, policy))
                return None
            notes.faulty.count(fault.code)
            notes.faulty.example(fault.code, row.where, path=fault.path, message=fault.message)
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
