"""What a verb is: settings, one function from rows to rows and a report, and a few words about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.data.sources import parse_spec
from luthier.prepare.chunks import plan
from luthier.prepare.config import ReadConfig, VerbConfig
from luthier.prepare.engine import Engine
from luthier.prepare.frame import Feed, Frame, Source
from luthier.prepare.origins import Origins
from luthier.prepare.parcel import Parcel, Work
from luthier.prepare.reading import Reading
from luthier.prepare.report import Report

ASKED = "asked"
"""Name of the lines that hold what a model is asked about rows; see `Job.ask_for_all`."""
_ASKED_AT_ONCE = 256
Answer = TypeVar("Answer")

PARTS = ("train", "validation", "test")
"""What parts of a split are called when nobody names them; two are the first two."""


@dataclass(frozen=True)
class Outcome:
    """What a verb gives back.

    `stream` is read once, to its end, and its rows are written; a verb that only looks at rows has none.  The report
    may still change while the stream is read: the tally of every parcel is added to it, and a generator may add to it
    behind its last parcel.
    """

    report: Report
    stream: Iterable[Parcel] | None = None


@dataclass
class Job:
    """What a verb may use besides its rows and its settings."""

    read: ReadConfig
    console: Console
    engine: Engine
    scratch: Path
    """A folder for files that do not outlive the verb."""
    tools: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Any])
    """What was handed in; see `Verb.tools`."""
    origins: Mapping[str, Origins] | None = None
    """In a recipe: where the rows of data sets made by earlier steps first came from."""
    _frames: int = field(default=0, repr=False)

    @property
    def seed(self) -> int:
        """Seed of everything that is drawn."""
        return self.read.seed

    def tool(self, name: str) -> Callable[..., Any]:
        """A callable that was handed in.

        Raises:
            ConfigError: nobody gave one.
        """
        if name not in self.tools:
            raise ConfigError(f"nothing was given that can {name}", where=name, code="missing_tool")
        return self.tools[name]

    def open(self, datasets: Sequence[str]) -> Frame:
        """The rows of data sets, in the notation of `--inputs`.  What a step of a recipe wrote knows its origins.

        Raises:
            DataError, ConfigError, MissingExtra: as `luthier.data.sources.open_rows`.
        """
        config = self.read.data()
        return self._frame(
            [
                Source(
                    text,
                    tuple(plan(parse_spec(text, self.read.hub), config, self.seed)),
                    (self.origins or {}).get(text),
                )
                for text in datasets
            ]
        )

    def follow(self, feed: Feed) -> Frame:
        """The rows that another verb lets through, while it writes them."""
        return self._frame([], feed)

    def _frame(self, sources: Sequence[Source], feed: Feed | None = None) -> Frame:
        self._frames += 1
        read = self.read
        reading = Reading(read.columns, read.bad_rows, read.max_row_bytes, self.origins is not None)
        return Frame(sources, reading, self.engine, self.console, self.rejected(self._frames), read.min_rows, feed)

    def ask_for_all(
        self, doing: str, rows: Frame, work: Work, ask: Callable[[list[Any]], Iterable[Answer]]
    ) -> list[Answer]:
        """An answer for each row.

        Args:
            work: keeps what is asked about each row as a line named ASKED.
            ask: a few hundred of these, in order -> an answer to each.
        """
        found: list[Answer] = []
        with self.console.progress(doing) as bar:
            for parcel in rows.scan(work, "Reading rows"):
                values = parcel.values(ASKED)
                for start in range(0, len(values), _ASKED_AT_ONCE):
                    block = values[start : start + _ASKED_AT_ONCE]
                    found.extend(ask(block))
                    bar.advance(len(block))
        return found

    def rejected(self, frame: int = 1) -> Path:
        """The file that takes the rows of a frame which cannot be used; frames are counted as they are opened."""
        return self.scratch / f"rejected-{frame}.jsonl"


def _one_output(_: Any) -> tuple[str, ...]:
    return ("",)


@dataclass(frozen=True)
class Verb:
    """One verb of the workshop.  Every module in `prepare/verbs` has one under the name VERB."""

    name: str
    config: type[VerbConfig]
    run: Callable[[Frame, Any, Job], Outcome]
    """(rows, settings, job) -> report and rows.  Deterministic: rows, settings and `job.seed` decide, nothing else."""
    about: str
    """One sentence for the help page."""
    examples: tuple[str, ...]
    """Commands for the help page."""
    version: int = 1
    """Part of the key of cached steps: raise it when the same input gives another result."""
    writes: bool = True
    """False for a verb that only looks."""
    flows: bool = False
    """Whether its stream is one pass over its rows whose parcels hold rows of their own batch alone, in order, and it
    asks nothing of its sources before it reads them.  In a recipe such verbs share passes: the first pass of one looks
    at the rows that the one before it writes."""
    reads: tuple[str, ...] = ()
    """Settings that name further files or data sets; their content enters the key of cached steps."""
    files: tuple[str, ...] = ()
    """Settings that name plain files to be read whole, of any kind; their content enters the key too."""
    tools: tuple[str, ...] = ()
    """Callables a verb needs from above (a model, an endpoint), by name: `job.tool(name)`.  The command line makes
    them of the verb's settings, see `cli/datatools.py`; in Python they are arguments of the same names."""
    sample: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings that suit any small set of chats, for the tests that hold for every verb; "{other}" is another file."""
    parts: Callable[[Any], tuple[str, ...]] = _one_output
    """Names of the outputs, from the settings; ("",) is a single one."""
