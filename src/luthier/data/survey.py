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
from luthier.data.row import Row
from luthier.data.sources import open_rows, parse_spec, stream_rows
from luthier.data.tasks import task_of

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


def _rows(config: DataConfig, specs: Sequence[str]) -> Iterator[Row]:
    for text in specs:
        spec = parse_spec(text, config.hub)
        if config.streaming:
            yield from islice(stream_rows(spec, config), _STREAMED)
        else:
            rows = open_rows(spec, config)
            yield from (rows[index] for index in range(len(rows)))


def evident_task(config: DataConfig) -> Task:
    """The task that most of the first rows of the first set are for; `language` when it cannot be read.

    Whatever is wrong with the set is told when it is read for good.
    """
    try:
        spec = parse_spec(config.datasets[0], config.hub)
        found: Counter[Task] = Counter()
        for row in islice(stream_rows(spec, config), _LOOKED_AT):
            if not isinstance(row.value, Fault):
                found[task_of(renamed(row.value, config.columns))] += 1
    except LuthierError:
        return "language"
    return found.most_common(1)[0][0] if found else "language"


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
        numbers &= not isinstance(label, tuple) and _is_number(label)
        counts.update(names_of(label))
    whole = all(name.removeprefix("-").isdigit() for name in counts)
    ordered = sorted(counts, key=(lambda name: int(name)) if whole else None)
    return Labels({name: counts[name] for name in ordered}, several, numbers and fractions)


def names_of(label: Label) -> tuple[str, ...]:
    """The names of the classes that a label means."""
    return tuple(dict.fromkeys(str(item) for item in label)) if isinstance(label, tuple) else (str(label),)


def _is_number(label: str | int | float) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
