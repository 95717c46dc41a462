"""A verb at work on its rows, alone or one behind another: what one lets through, the next one reads on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luthier import __version__
from luthier.base.errors import DataError
from luthier.data.textfile import describe
from luthier.prepare.chunks import Span
from luthier.prepare.config import VerbConfig
from luthier.prepare.frame import Frame, Source
from luthier.prepare.origins import Origins
from luthier.prepare.parcel import REMOVED, Parcel
from luthier.prepare.places import Places
from luthier.prepare.reading import Worker
from luthier.prepare.report import Finished
from luthier.prepare.verb import Job, Verb
from luthier.prepare.write import Writer, write_rows


@dataclass
class Stage:
    """One verb at work on its rows; what it lets through is written while it comes."""

    verb: Verb
    config: VerbConfig
    job: Job
    rows: Frame
    made: Places
    inputs: Sequence[str]
    """What the report calls what is read."""
    finish: Callable[[Finished], None] | None = None
    """Called once everything has been written."""
    finished: Finished | None = field(default=None, init=False)

    def run(self) -> Finished:
        """Do all of it.

        Raises:
            LuthierError: as `do`.
        """
        for _ in self.parcels():
            pass
        assert self.finished is not None, "the last parcel has been taken"
        return self.finished

    def parcels(self, then: Worker | None = None) -> Iterator[Parcel]:
        """What the verb makes of its rows.  Everything has its name when the last parcel has been taken; nothing has if
        it never is.

        Args:
            then: what the next verb does with rows that go on.
        """
        job, made = self.job, self.made
        outcome = self.verb.run(self.rows, self.config, job)
        self.rows.then = then
        paths = {**made.outputs, **({REMOVED: made.removed} if made.removed else {})}
        parts = self.verb.parts(self.config) if self.verb.writes else ()
        with Writer(parts, paths, origins=job.origins is not None) as writer:
            for parcel in outcome.stream or ():
                writer.write(parcel)
                outcome.report.tally.add(parcel.tally)
                yield parcel
            if not self.rows.facts.rows:
                raise DataError("no row was read", where=", ".join(self.inputs), code="no_rows")
            writer.publish()
        if made.rejected and job.rejected().exists():
            made.rejected.parent.mkdir(parents=True, exist_ok=True)
            write_rows(job.rejected(), made.rejected)
        self.finished = Finished(
            self.verb.name,
            __version__,
            tuple(self.inputs),
            self.config.model_dump(mode="json"),
            job.seed,
            self.rows.facts,
            writer.rows,
            outcome.report,
        )
        if self.finish is not None:
            self.finish(self.finished)


class Handover:
    """The rows of a verb with one output, handed to the next one while they are written; see `Feed`.

    Args:
        path: where they lie once the verb has finished.
    """

    def __init__(self, stage: Stage, path: Path, name: str):
        self._stage, self._path, self._name = stage, path, name
        self._pieces: list[tuple[int, int]] = []

    def parcels(self, then: Worker) -> Iterator[Parcel]:
        """What `then` makes of the rows, in order."""
        self._pieces = []
        for parcel in self._stage.parcels(then):
            if parcel.then is not None:
                self._pieces.append((len(parcel.lines[""]), parcel.written[""]))
                yield parcel.then

    def source(self) -> Source:
        """Where the rows lie: a chunk for each parcel."""
        if not self._pieces:
            return Source(self._name, ())
        file = describe(self._path, str(self._path), self._stage.job.read.data())
        spans: list[Span] = []
        start, line = 0, 1
        for size, rows in self._pieces:
            spans.append(Span(file, start, start + size, line))
            start, line = start + size, line + rows
        return Source(self._name, tuple(spans), Origins(self._path))
