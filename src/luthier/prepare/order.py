"""Rows in another order, some of them more than once, without holding them in memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Where
from luthier.base.rundir import storage_error
from luthier.prepare.origins import Origins, OriginWriter
from luthier.prepare.parcel import Parcel

_AT_ONCE = 1000


def reordered(stream: Iterable[Parcel], order: NDArray[np.signedinteger[Any]], scratch: Path) -> Iterator[Parcel]:
    """The rows of a stream in the order wanted.

    The rows are put into a file first; what a stream counted comes with the first parcel.

    Args:
        stream: parcels with rows for one output.
        order: positions among the stream's rows, int [M]; each may come any number of times.
        scratch: folder for the file.

    Raises:
        RunError: code `disk_full` or `cannot_write`.
    """
    held = scratch / "rows.held"
    ends = array("q", [0])
    first = Parcel()
    try:
        origins = OriginWriter(held)
        with held.open("wb") as file:
            for parcel in stream:
                first.tally.add(parcel.tally)
                lines = parcel.lines.pop("", b"")
                ends.frombytes(_ends(lines, ends[-1]).tobytes())
                file.write(lines)
                if "" in parcel.placed:
                    origins.write(parcel.placed.pop(""))
                parcel.written.pop("", None)
                if parcel.lines:  # removed rows go their way
                    yield Parcel(lines=parcel.lines, written=parcel.written, placed=parcel.placed)
        origins.close()
    except OSError as error:
        raise storage_error(error, held) from error
    yield first
    known = held.with_suffix(".origins").stat().st_size > 0
    places, nowhere = Origins(held), Where("", 0)
    with held.open("rb") as file:
        for start in range(0, len(order), _AT_ONCE):
            parcel = Parcel()
            for row in order[start : start + _AT_ONCE].tolist():
                line = os.pread(file.fileno(), ends[row + 1] - ends[row] - 1, ends[row])
                where = places[row] if known else nowhere
                parcel.keep_line(where.file, where.line, line)
            yield parcel.pack(origins=known)
    held.unlink()


def _ends(lines: bytes, start: int) -> NDArray[np.int64]:
    found = np.flatnonzero(np.frombuffer(lines, np.uint8) == 10)
    return found.astype(np.int64) + 1 + start
