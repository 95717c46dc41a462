"""Rows of data sets as often as they are needed and never all at once.

A frame is read in passes.  Each pass sends its chunks to workers, which read the rows, do the work and send parcels
back, in the order of the rows.  What a decision needs of all rows at once (hashes, labels, scores) comes back as
columns; the next pass takes the decision along, one value for each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.console import Console
from luthier.base.errors import DataError
from luthier.prepare.chunks import Chunk, total_bytes
from luthier.prepare.engine import Engine
from luthier.prepare.origins import Origins
from luthier.prepare.parcel import Batch, Columns, Parcel, Placed, Read, Tally, Value, Work, raise_again
from luthier.prepare.reading import Reading, Task, Worker
from luthier.prepare.spill import Spill


@dataclass(frozen=True)
class Source:
    """One data set of a frame."""

    name: str
    chunks: tuple[Chunk, ...]
    origins: Origins | None = None
    """Where the rows first came from, when this set was made from others."""


class Feed(Protocol):
    """Rows that another verb lets through, handed on while they are written."""

    def parcels(self, then: Worker) -> Iterator[Parcel]:
        """What `then` makes of them, in order."""
        ...

    def source(self) -> Source:
        """Where they lie, once all of them have been read; a chunk for each of the parcels."""
        ...


@dataclass(frozen=True)
class Measured:
    """What a pass found out: one value (or row of values) for each row, and counts."""

    columns: Columns
    tally: Tally


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
        feed: gives the rows of the first pass in place of the sources.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        reading: Reading,
        engine: Engine,
        console: Console,
        rejected: Path,
        min_rows: int,
        feed: Feed | None = None,
    ):
        self.sources = tuple(sources)
        self.facts = Facts()
        self.then: Worker | None = None
        """Reads what a pass lets through; set before the last one."""
        self._feed = feed
        self._reading, self._engine, self._console = reading, engine, console
        self._rejected, self._min_rows = rejected, min_rows
        self._counts: list[int] | None = None
        self._sound: list[bool] = []
        self._files: dict[str, int] = {}
        self._file: list[NDArray[np.int32]] = []
        self._line: list[range | NDArray[np.uint32]] = []

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
        worker = Worker(work, self._reading, first, self.then)
        with self._console.progress(label) as bar:
            for parcel in self._feed.parcels(worker) if first and self._feed else self._run(worker, attached):
                if parcel.error is not None:
                    raise_again(parcel.error)
                assert parcel.read is not None, "workers fill it in"
                counts.append(parcel.read.rows)
                if first:
                    self._note(parcel.read)
                bar.advance(parcel.read.rows)
                yield parcel
        if first:
            if self._feed:
                self.sources = (self._feed.source(),)
            self._counts = counts
            self._refuse_few()

    def _run(self, worker: Worker, attached: Mapping[str, NDArray[Any]] | None) -> Iterator[Parcel]:
        chunks = [(chunk, source.origins) for source in self.sources for chunk in source.chunks]
        return self._engine.run(worker, self._tasks(chunks, attached), total_bytes([chunk for chunk, _ in chunks]))

    def measure(
        self,
        work: Work,
        label: str,
        attached: Mapping[str, NDArray[Any]] | None = None,
        spilled: Mapping[str, Spill] | None = None,
    ) -> Measured:
        """One pass for what it finds out: the columns of all parcels, joined [rows, ...], and their counts.

        Args:
            spilled: takes the columns of these names instead, which may be too much for memory.
        """
        tally, pieces = Tally(), dict[str, list[NDArray[Any]]]()
        for parcel in self.scan(work, label, attached):
            tally.add(parcel.tally)
            for name, column in parcel.columns.items():
                if spilled and name in spilled:
                    spilled[name].append(column)
                else:
                    pieces.setdefault(name, []).append(column)
        # column by column, so that no more than one is there twice
        return Measured({name: np.concatenate(pieces.pop(name)) for name in list(pieces)}, tally)

    def pick(self, keep: NDArray[np.bool_], label: str = "Writing", reason: str = "removed") -> Iterator[Parcel]:
        """One pass that lets the rows through that `keep` [rows] names."""
        return self.scan(Pick(reason), label, {"keep": keep})

    def origins(self) -> NDArray[np.int32]:
        """Which source each row is from, int32 [rows]."""
        assert self._counts is not None, "rows are counted by the first pass"
        numbers = [np.full(len(source.chunks), index) for index, source in enumerate(self.sources)]
        return np.repeat(np.concatenate([np.empty(0, np.int32), *numbers]), self._counts).astype(np.int32)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that rows stand in; known after the first pass."""
        return tuple(self._files)

    def places(self, rows: NDArray[np.signedinteger[Any]]) -> Placed:
        """Where some rows stand, by their numbers [some]; known after the first pass."""
        assert self._counts is not None, "rows are counted by the first pass"
        file, line = np.empty(len(rows), np.int32), np.empty(len(rows), np.uint32)
        order = np.argsort(rows)
        ordered = rows[order]
        starts = np.cumsum([0, *self._counts])
        borders = np.searchsorted(ordered, starts)
        for chunk in np.flatnonzero(np.diff(borders)).tolist():
            low, high = borders[chunk : chunk + 2].tolist()
            mine, at = order[low:high], ordered[low:high] - starts[chunk]
            lines = self._line[chunk]
            file[mine] = self._file[chunk][at]
            line[mine] = lines[at] if isinstance(lines, np.ndarray) else at + lines.start
        return Placed(tuple(self._files), file, line)

    def _tasks(
        self, chunks: Sequence[tuple[Chunk, Origins | None]], attached: Mapping[str, NDArray[Any]] | None
    ) -> list[Task]:
        if self._counts is None:
            return [Task(chunk, origins, {}, 0, False) for chunk, origins in chunks]
        tasks: list[Task] = []
        start = 0
        for (chunk, origins), count, sound in zip(chunks, self._counts, self._sound, strict=True):
            end = start + count
            mine = {name: column[start:end] for name, column in (attached or {}).items()}
            tasks.append(Task(chunk, origins, mine, start, sound))
            start = end
        return tasks

    def _note(self, read: Read) -> None:
        """Remember what the first pass saw of a chunk."""
        assert read.placed is not None, "the first pass places its rows"
        numbers = np.array([self._files.setdefault(name, len(self._files)) for name in read.placed.files], np.int32)
        one = len(numbers) == 1
        self._file.append(
            np.broadcast_to(numbers[0], len(read.placed.file)) if one else numbers[read.placed.file].astype(np.int32)
        )
        self._line.append(_lines(read.placed.line))
        self._sound.append(read.sound)
        self.facts.rows += read.rows
        for line in read.rejected:
            code = str(line["code"])
            self.facts.rejected[code] = self.facts.rejected.get(code, 0) + 1
        self.facts.examples += read.rejected[: 20 - len(self.facts.examples)]
        self.facts.faulty.add(read.faulty)
        if read.rejected:
            with self._rejected.open("ab") as stream:
                stream.writelines(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in read.rejected)

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


def _lines(numbers: NDArray[np.uint32]) -> range | NDArray[np.uint32]:
    """Numbers of lines; as a range, which takes no memory, where they lie one behind the other."""
    start = int(numbers[0]) if len(numbers) else 0
    found = range(start, start + len(numbers))
    return found if np.array_equal(numbers, np.arange(found.start, found.stop)) else numbers


@dataclass(frozen=True)
class Pick:
    """Lets rows through whose attached `keep` is true."""

    reason: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        at = 0
        for number in np.flatnonzero(~batch.attached["keep"]).tolist():
            parcel.keep_all(batch.items[at:number])
            parcel.drop(batch.items[number], self.reason)
            at = number + 1
        parcel.keep_all(batch.items[at:])
        return parcel
