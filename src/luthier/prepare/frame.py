"""Rows of data sets as often as they are needed and never all at once.

A frame is read in passes.  Each pass sends its chunks to workers, which read the rows, do the work and send parcels
back, in the order of the rows.  What a decision needs of all rows at once (hashes, labels, scores) comes back as
columns; the next pass takes the decision along, one value for each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.console import Console
from luthier.base.errors import DataError, LuthierError
from luthier.base.records import Fault, Json
from luthier.data.checks import renamed, shape_fault
from luthier.data.config import BadRows
from luthier.data.row import Row
from luthier.prepare.chunks import Chunk, total_bytes
from luthier.prepare.engine import Engine
from luthier.prepare.origins import Origins
from luthier.prepare.parcel import Batch, Columns, Item, Parcel, Tally, Value, Work, raise_again, refusal

TEXT_KEPT = 2000
"""Characters of a rejected row that are kept for people to read."""


@dataclass(frozen=True)
class Source:
    """One data set of a frame."""

    name: str
    chunks: tuple[Chunk, ...]
    origins: Origins | None = None
    """Where the rows first came from, when this set was made from others."""


@dataclass(frozen=True)
class Reading:
    """How a worker makes items of rows."""

    columns: Mapping[str, str]
    policy: BadRows


@dataclass(frozen=True)
class Measured:
    """What a pass found out: one value (or row of values) for each row, and counts."""

    columns: Columns
    tally: Tally


@dataclass(frozen=True)
class Places:
    """Where the rows of a frame stand: their files by name, and the 1-based line of each row."""

    names: tuple[str, ...]
    file: NDArray[np.int32]
    """Position in `names`, [rows]."""
    line: NDArray[np.uint32]
    """[rows]"""


@dataclass(slots=True)
class Facts:
    """What reading a frame for the first time brought to light."""

    rows: int = 0
    """Usable rows."""
    rejected: dict[str, int] = field(default_factory=dict[str, int])
    """Rows that cannot be used, by code."""
    faulty: Tally = field(default_factory=Tally)
    """Rows that can be used but contradict their shape, by code, and repairs made while reading."""
    examples: list[Value] = field(default_factory=list[Value])
    """The first rejected rows."""


class Frame:
    """The rows of some data sets, one set after the other.

    Args:
        rejected: file that takes the rows which cannot be used, one JSON line each.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        reading: Reading,
        engine: Engine,
        console: Console,
        rejected: Path,
        min_rows: int,
    ):
        self.sources = tuple(sources)
        self.facts = Facts()
        self._chunks = [chunk for source in sources for chunk in source.chunks]
        self._origins = [source.origins for source in sources for _ in source.chunks]
        self._reading, self._engine, self._console = reading, engine, console
        self._rejected, self._min_rows = rejected, min_rows
        self._counts: list[int] | None = None
        self._files: dict[str, int] = {}
        self._file: list[NDArray[np.int32]] = []
        self._line: list[NDArray[np.uint32]] = []

    def __len__(self) -> int:
        """Usable rows; they are known after the first pass."""
        assert self._counts is not None, "rows are counted by the first pass"
        return sum(self._counts)

    def scan(self, work: Work, label: str, attached: Mapping[str, NDArray[Any]] | None = None) -> Iterator[Parcel]:
        """One pass: the parcels that `work` makes of all batches, in order.

        Args:
            label: what a person sees beside the progress.
            attached: arrays [rows, ...] whose values each row finds in `Batch.attached`.

        Raises:
            DataError: a row under `strict`, or too few usable rows.
        """
        first = self._counts is None
        if not first:
            size = len(self)
            assert all(len(column) == size for column in (attached or {}).values()), "one value for each row"
        counts: list[int] = []
        run = _Run(work, self._reading, check=first or self._reading.policy == "drop")
        with self._console.progress(label) as bar:
            for parcel in self._engine.run(run, self._tasks(attached), total_bytes(self._chunks)):
                if parcel.error is not None:
                    raise_again(parcel.error)
                counts.append(parcel.rows)
                if first:
                    self._note(parcel)
                bar.advance(parcel.rows)
                yield parcel
        if first:
            self._counts = counts
            self._refuse_few()

    def measure(self, work: Work, label: str, attached: Mapping[str, NDArray[Any]] | None = None) -> Measured:
        """One pass for what it finds out: the columns of all parcels, joined [rows, ...], and their counts."""
        tally, pieces = Tally(), dict[str, list[NDArray[Any]]]()
        for parcel in self.scan(work, label, attached):
            tally.add(parcel.tally)
            for name, column in parcel.columns.items():
                pieces.setdefault(name, []).append(column)
        return Measured({name: np.concatenate(parts) for name, parts in pieces.items()}, tally)

    def pick(self, keep: NDArray[np.bool_], label: str = "Writing", reason: str = "removed") -> Iterator[Parcel]:
        """One pass that lets the rows through that `keep` [rows] names."""
        return self.scan(Pick(reason), label, {"keep": keep})

    def origins(self) -> NDArray[np.int32]:
        """Which source each row is from, int32 [rows]."""
        assert self._counts is not None, "rows are counted by the first pass"
        numbers = [np.full(len(source.chunks), index) for index, source in enumerate(self.sources)]
        return np.repeat(np.concatenate([np.empty(0, np.int32), *numbers]), self._counts).astype(np.int32)

    @property
    def places(self) -> Places:
        """Where each row stands; known after the first pass."""
        assert self._counts is not None, "rows are counted by the first pass"
        return Places(tuple(self._files), np.concatenate(self._file), np.concatenate(self._line))

    def _tasks(self, attached: Mapping[str, NDArray[Any]] | None) -> list[_Task]:
        starts = [0] * (len(self._chunks) + 1) if self._counts is None else np.cumsum([0, *self._counts]).tolist()
        return [
            _Task(
                chunk,
                self._origins[i],
                {name: column[starts[i] : starts[i + 1]] for name, column in (attached or {}).items()},
                starts[i],
            )
            for i, chunk in enumerate(self._chunks)
        ]

    def _note(self, parcel: Parcel) -> None:
        numbers = np.array([self._files.setdefault(name, len(self._files)) for name in parcel.files], np.int32)
        self._file.append(numbers[parcel.file] if len(numbers) else np.empty(0, np.int32))
        self._line.append(parcel.line)
        self.facts.rows += parcel.rows
        for line in parcel.rejected:
            code = str(line["code"])
            self.facts.rejected[code] = self.facts.rejected.get(code, 0) + 1
        self.facts.examples += parcel.rejected[: 20 - len(self.facts.examples)]
        self.facts.faulty.add(parcel.faulty)
        if parcel.rejected:
            with self._rejected.open("ab") as stream:
                stream.writelines(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in parcel.rejected)

    def _refuse_few(self) -> None:
        if self.facts.rows >= max(1, self._min_rows):
            return
        names = ", ".join(source.name for source in self.sources)
        lost = sum(self.facts.rejected.values())
        why = ""
        if self.facts.examples:
            worst = self.facts.examples[0]
            why = f"; the first of {lost} that cannot: {worst['file']}:{worst['line']}: {worst['message']}"
        if self.facts.rows == 0:
            raise DataError(f"no row can be used{why}", where=names, code="no_rows")
        what = f"{self.facts.rows} rows can be used, fewer than {self._min_rows}{why}"
        raise DataError(what, where=names, code="too_few_rows", fix="--min_rows says how many there must be")


@dataclass(frozen=True)
class Pick:
    """Lets rows through whose attached `keep` is true."""

    reason: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item, keep in zip(batch.items, batch.attached["keep"].tolist(), strict=True):
            if keep:
                parcel.keep(item)
            else:
                parcel.drop(item, self.reason)
        return parcel


@dataclass(frozen=True, slots=True)
class _Task:
    chunk: Chunk
    origins: Origins | None
    attached: Columns
    first: int


@dataclass(frozen=True)
class _Run:
    """What a worker does with a task."""

    work: Work
    reading: Reading
    check: bool

    def __call__(self, task: _Task) -> Parcel:
        rejected: list[Value] = []
        faulty = Tally()
        try:
            items = list(self._items(task, rejected, faulty))
            parcel = self.work(Batch(items, task.attached, task.first))
        except LuthierError as error:
            return Parcel(error=refusal(error))
        parcel.rows, parcel.rejected, parcel.faulty = len(items), rejected, faulty
        if self.check:
            files: dict[str, int] = {}
            numbers = (files.setdefault(item.where.file, len(files)) for item in items)
            parcel.file = np.fromiter(numbers, np.int32, len(items))
            parcel.line = np.fromiter((item.where.line for item in items), np.uint32, len(items))
            parcel.files = tuple(files)
        return parcel

    def _items(self, task: _Task, rejected: list[Value], faulty: Tally) -> Iterator[Item]:
        policy, columns = self.reading.policy, self.reading.columns
        for row in task.chunk.rows():
            if task.origins is not None:
                row = replace(row, where=task.origins[row.where.line - 1])
            for repair in row.repairs:
                faulty.count(repair.code)
                faulty.example(repair.code, row.where, message=repair.message)
            value = row.value
            if isinstance(value, Fault):
                rejected.append(_reject(value, row, policy))
                continue
            if columns:
                value = renamed(value, columns)
            fault = shape_fault(value, row.where) if self.check else None
            if fault is not None:
                if policy != "fix":
                    rejected.append(_reject(fault, row, policy))
                    continue
                faulty.count(fault.code)
                faulty.example(fault.code, row.where, path=fault.path, message=fault.message)
            yield Item(row.where, value)


def _reject(fault: Fault, row: Row, policy: BadRows) -> Value:
    if policy == "strict":
        fix = "Repair the row, or use --bad_rows fix or drop"
        raise DataError(fault.message, where=f"{fault.where} {fault.path}".strip(), code=fault.code, fix=fix)
    text = None if isinstance(row.value, Fault) else orjson.dumps(row.value).decode(errors="replace")[:TEXT_KEPT]
    line: dict[str, Json] = {"file": fault.where.file, "line": fault.where.line, "code": fault.code}
    return {**line, "path": fault.path, "message": fault.message, "row": text}
