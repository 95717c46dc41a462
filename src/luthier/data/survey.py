"""What the labels of a set are, found by reading it once before anything is encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from luthier.base.errors import LuthierError
from luthier.base.records import Fault, Label, Record, Task
from luthier.data.checks import RecordOptions, renamed, to_record
from luthier.data.config import DataConfig
from luthier.data.formats import shape_of
from luthier.data.guess import is_number
from luthier.data.row import Row
from luthier.data.sources import open_rows, parse_spec, stream_rows
from luthier.data.tasks import has_class, task_of

_LOOKED_AT = 50
"""Rows that decide what a set is for."""
_STREAMED = 1000
"""Rows of a streamed set that are surveyed."""


def records(config: DataConfig, specs: Sequence[str], task: Task) -> Iterator[Record]:
    """The records of some sets, in order; rows that cannot be read are left out, encoding will report them.

    Raises:
        DataError: a set cannot be opened.
    """
    options = RecordOptions.from_config(config, task)
    for row in _rows(config, specs):
        record, _ = to_record(row, options)
        if not isinstance(record, Fault):
            yield record


def first_fault(config: DataConfig, specs: Sequence[str], task: Task) -> Fault | None:
    """Why the first of the rows that cannot be read for a task cannot; None where all can.

    Raises:
        DataError: a set cannot be opened.
    """
    options = RecordOptions.from_config(config, task)
    found = (to_record(row, options)[0] for row in _rows(config, specs))
    return next((fault for fault in found if isinstance(fault, Fault)), None)


def _rows(config: DataConfig, specs: Sequence[str]) -> Iterator[Row]:
    for text in specs:
        spec = parse_spec(text, config.hub)
        if config.streaming:
            yield from islice(stream_rows(spec, config), _STREAMED)
        else:
            rows = open_rows(spec, config)
            yield from (rows[index] for index in range(len(rows)))


@dataclass(frozen=True, slots=True)
class Look:
    """What most of the first rows of a set are like."""

    task: Task = "language"
    """The task they are evidently for; `language` also when they cannot be read."""
    classes: bool = False
    """Whether they are texts with a column that is usually a class, though it may be metadata."""
    texts: bool = False
    """Whether they are texts that nobody answers."""


def look(config: DataConfig) -> Look:
    """Look at the first rows of the first set.  Whatever is wrong with it is told when it is read for good."""
    tasks: Counter[Task] = Counter()
    classes: Counter[bool] = Counter()
    texts: Counter[bool] = Counter()
    try:
        spec = parse_spec(config.datasets[0], config.hub)
        for row in islice(stream_rows(spec, config), _LOOKED_AT):
            if not isinstance(row.value, Fault):
                value = renamed(row.value, config.columns)
                tasks[task_of(value)] += 1
                classes[has_class(value)] += 1
                texts[shape_of(value) == "text"] += 1
    except LuthierError:
        return Look()
    if not tasks:
        return Look()
    return Look(tasks.most_common(1)[0][0], classes.most_common(1)[0][0], texts.most_common(1)[0][0])


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a set."""

    counts: dict[str, int]
    """Each class by its name, in order, with the rows that have it."""
    several: bool
    """Whether rows have several classes."""
    numbers: bool
    """Whether the labels are numbers that are no classes."""


def labels_of(labels: Iterable[Label]) -> Labels:
    """Survey labels.  Names that are whole numbers are ordered as numbers, others as text."""
    counts: Counter[str] = Counter()
    several = fractions = False
    numbers = True
    for label in labels:
        several |= isinstance(label, tuple)
        fractions |= isinstance(label, float) or (isinstance(label, str) and "." in label)
        numbers &= not isinstance(label, tuple) and is_number(label)
        counts.update(names_of(label))
    whole = all(name.removeprefix("-").isdigit() for name in counts)
    ordered = sorted(counts, key=(lambda name: int(name)) if whole else None)
    return Labels({name: counts[name] for name in ordered}, several, numbers and fractions)


def names_of(label: Label) -> tuple[str, ...]:
    """The names of the classes that a label means."""
    return tuple(dict.fromkeys(str(item) for item in label)) if isinstance(label, tuple) else (str(label),)
