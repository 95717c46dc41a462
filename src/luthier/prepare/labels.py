"""The label of a row: the value of one column, as a name that rows of one class share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.config import nearest
from luthier.base.errors import DataError
from luthier.base.records import Json
from luthier.data.columns import LABELS, MORE_LABELS
from luthier.prepare.frame import Frame
from luthier.prepare.groups import AT_ONCE, frequencies
from luthier.prepare.parcel import Batch, Parcel, Tally
from luthier.prepare.view import column

MOST_CLASSES = 10_000
"""A column with more values is no label."""
_COLUMNS = "columns"
"""Where the columns of rows without the label are kept, to name them should no row have it."""


def label_of(value: Mapping[str, Json], name: str) -> str | None:
    """The class a row is of: text as it is, other values as JSON; None where there is none or it is empty."""
    found = column(value, name)
    if found is None or found == "" or found == []:
        return None
    return found if isinstance(found, str) else orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True)
class Labels:
    """The classes of all rows."""

    names: tuple[str, ...]
    """The classes there are, in the order of their names."""
    codes: NDArray[np.signedinteger[Any]]
    """Position in `names` of each row's class, -1 for rows without one; [rows]."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each class."""
        return frequencies(self.codes, len(self.names))

    def table(self) -> list[dict[str, Json]]:
        """Class, rows and share of each."""
        counts = self.counts
        total = max(1, int(counts.sum()))
        return [
            {"label": name, "rows": n, "share": round(n / total, 4)}
            for name, n in zip(self.names, counts.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class _Read:
    """Work that counts the labels by name, and gives each row the place of its own among these counts, int16 [rows], -1
    where there is none."""

    name: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        labels = [label_of(item.value, self.name) for item in batch.items]
        for label in labels:
            if label is not None:
                parcel.tally.count(label)
        if batch.items and not parcel.tally.counts:
            parcel.tally.example(_COLUMNS, batch.items[0].where, names=list(batch.items[0].value))
        if len(parcel.tally.counts) > MOST_CLASSES:
            raise _too_many(self.name, batch.items[0].where.file)
        places: dict[str | None, int] = {label: at for at, label in enumerate(parcel.tally.counts)} | {None: -1}
        parcel.columns["label"] = np.array([places[label] for label in labels], np.int16)
        return parcel


def _too_many(name: str, where: str) -> DataError:
    fix = "Name the column with the classes"
    return DataError(
        f"the column {name!r} has more than {MOST_CLASSES:,} values", where=where, fix=fix, code="no_label"
    )


def count_labels(rows: Frame, name: str, *, needed: bool = True) -> dict[str, int]:
    """One pass that counts the rows of each class, by name and in the order of the names.

    Raises:
        DataError: as `read_labels`.
    """
    counts: dict[str, int] = {}
    for _ in _pass(rows, name, counts, needed=needed):
        pass
    return dict(sorted(counts.items()))


def read_labels(rows: Frame, name: str) -> Labels:
    """One pass that finds the class of every row.

    Raises:
        DataError: code `no_label` when the column has no value in any row, or is no label.
    """
    counts: dict[str, int] = {}
    met: dict[str, int] = {}
    pieces: list[NDArray[np.int16]] = [np.empty(0, np.int16)]
    for parcel in _pass(rows, name, counts, needed=True):
        # classes by when they were met, while it is not known which others there are; -1, the last one, stays -1
        places = np.array([*(met.setdefault(label, len(met)) for label in parcel.tally.counts), -1], np.int16)
        pieces.append(places[parcel.columns["label"]])
    codes = np.concatenate(pieces)
    names = sorted(met)
    ranks = {label: rank for rank, label in enumerate(names)}
    order = np.array([*(ranks[label] for label in met), -1], np.int16)
    for start in range(0, len(codes), AT_ONCE):
        codes[start : start + AT_ONCE] = order[codes[start : start + AT_ONCE]]
    return Labels(tuple(names), codes)


def _pass(rows: Frame, name: str, counts: dict[str, int], *, needed: bool) -> Iterator[Parcel]:
    """The pass itself; `counts` takes the rows of each class."""
    where = ", ".join(source.name for source in rows.sources)
    tally = Tally(counts)
    for parcel in rows.scan(_Read(name), "Reading labels"):
        tally.add(parcel.tally)
        if len(counts) > MOST_CLASSES:
            raise _too_many(name, where)
        yield parcel
    if needed and not counts:
        columns = [str(one) for shown in tally.examples[_COLUMNS] for one in cast(list[Json], shown["names"])]
        usual = [one for one in columns if name in LABELS and one.lower() in MORE_LABELS]
        hint = nearest(name, columns) or next(iter(usual), None)
        fix = f"Did you mean {hint!r}?" if hint else f"Columns: {', '.join(dict.fromkeys(columns))}"
        raise DataError(f"no row has a value in the column {name!r}", where=where, fix=fix, code="no_label")
