"""The label of a row: the value of one column, as a name that rows of one class share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.config import nearest
from luthier.base.errors import DataError
from luthier.base.records import Json
from luthier.prepare.frame import Frame
from luthier.prepare.identity import key_of
from luthier.prepare.parcel import Batch, Parcel
from luthier.prepare.view import column

MOST_CLASSES = 10_000
"""A column with more values is no label."""
_AT_ONCE = 1_000_000
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
    codes: NDArray[np.int32]
    """Position in `names` of each row's class, -1 for rows without one; [rows]."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each class."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))

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
    """Work that gives each row the hash of its label, uint64 [rows], and counts the labels by name."""

    name: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        hashes: list[int] = []
        for item in batch.items:
            label = label_of(item.value, self.name)
            hashes.append(0 if label is None else _hash(label))
            if label is not None:
                parcel.tally.count(label)
        if batch.items and not parcel.tally.counts:
            parcel.tally.example(_COLUMNS, batch.items[0].where, names=list(batch.items[0].value))
        if len(parcel.tally.counts) > MOST_CLASSES:
            raise _too_many(self.name, batch.items[0].where.file)
        parcel.columns["label"] = np.array(hashes, np.uint64)
        return parcel


def _hash(label: str) -> int:
    return int.from_bytes(key_of(label.encode("utf-8", "surrogatepass"))[:8], "little") | 1


def _too_many(name: str, where: str) -> DataError:
    fix = "Name the column with the classes"
    return DataError(
        f"the column {name!r} has more than {MOST_CLASSES:,} values", where=where, fix=fix, code="no_label"
    )


def read_labels(rows: Frame, name: str, *, needed: bool = True) -> Labels:
    """One pass that finds the class of every row.

    Raises:
        DataError: code `no_label` when the column has no value in any row (and it is needed), or is no label.
    """
    found = rows.measure(_Read(name), "Reading labels")
    where = ", ".join(source.name for source in rows.sources)
    if len(found.tally.counts) > MOST_CLASSES:
        raise _too_many(name, where)
    if needed and not found.tally.counts:
        columns = [str(one) for shown in found.tally.examples[_COLUMNS] for one in cast(list[Json], shown["names"])]
        hint = nearest(name, columns)
        fix = f"Did you mean {hint!r}?" if hint else f"Columns: {', '.join(dict.fromkeys(columns))}"
        raise DataError(f"no row has a value in the column {name!r}", where=where, fix=fix, code="no_label")
    return _labels(sorted(found.tally.counts), found.columns["label"])


def _labels(names: Sequence[str], hashes: NDArray[np.uint64]) -> Labels:
    known = np.array([_hash(name) for name in names], np.uint64)
    order = np.argsort(known)
    codes = np.zeros(len(hashes), np.int32)
    if len(names):
        known, order = known[order], order.astype(np.int32)
        for start in range(0, len(hashes), _AT_ONCE):
            at = np.searchsorted(known, hashes[start : start + _AT_ONCE])
            codes[start : start + _AT_ONCE] = order[np.minimum(at, len(names) - 1)]
    codes[hashes == 0] = -1
    return Labels(tuple(names), codes)
