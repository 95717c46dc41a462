"""Single values of rows, compared with what all rows say: gaps filled, outliers dropped or clipped."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import orjson

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.prepare.distribution import mean_of, median_of
from luthier.prepare.frame import Frame, Measured
from luthier.prepare.gaps import Limits, Rule, is_missing, limits, number_of
from luthier.prepare.parcel import Batch, Item, Parcel, Value
from luthier.prepare.spill import Spill, spills
from luthier.prepare.torn import Ends, tags_of, torn_at
from luthier.prepare.view import column, fields, text_of

CHARACTERS = "characters"
"""Name that stands for the length of a row's text among numeric columns."""


def gaps(value: Value, names: Sequence[str]) -> Iterator[str]:
    """Columns without a value; without names, the texts of the row that are empty (a system message may be)."""
    if names:
        yield from (name for name in names if is_missing(column(value, name)))
        return
    found = fields(value)
    yield from (field.name for field in found if field.use != "system" and is_missing(field.text))
    if not found:
        yield "text"


def measure_of(value: Value, name: str) -> float:
    """A numeric column's value, or the characters of the row's text; NaN where there is none."""
    return float(len(text_of(value))) if name == CHARACTERS else number_of(column(value, name))


@dataclass(frozen=True)
class Bounds:
    """What single values are held against."""

    outliers: tuple[tuple[str, Limits], ...] = ()
    clip: bool = False
    fills: tuple[tuple[str, Json], ...] = ()
    ends: Ends | None = None
    """How entities end where rows with torn tags are dropped."""

    def applied(self, item: Item, value: Value, parcel: Parcel) -> Value | None:
        """The row with its gaps filled and its outliers clipped; None when it was dropped for one, or for its tags."""
        torn = torn_at(tags_of(value) or [], self.ends) if self.ends else None
        if torn is not None:
            parcel.drop(item, "torn_tags", **torn)
            return None
        for name, filler in self.fills:
            if is_missing(column(value, name)):
                value = _with(value, name, filler)
                parcel.tally.count("filled")
                parcel.tally.example("filled", item.where, column=name, value=filler)
        for name, usual in self.outliers:
            number = measure_of(value, name)
            if usual.low <= number <= usual.high or np.isnan(number):
                continue
            if not self.clip:
                parcel.drop(item, "outlier", column=name, value=number, low=usual.low, high=usual.high)
                return None
            near = usual.low if number < usual.low else usual.high
            value = _with(value, name, near)
            parcel.tally.count("clipped")
            parcel.tally.example("clipped", item.where, column=name, before=number, after=near)
        return value


def _with(value: Value, name: str, new: Json) -> Value:
    """The row with another value in a column, which may lie deeper by a dotted path."""
    if name in value or "." not in name:
        return {**value, name: new}
    head, _, rest = name.partition(".")
    below = value.get(head)
    return {**value, head: _with(below if isinstance(below, dict) else {}, rest, new)}


@dataclass(frozen=True)
class _Look:
    """Numbers of every row, and how often values occur."""

    numbers: tuple[str, ...]
    values: tuple[str, ...]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for name in self.numbers:
            parcel.columns[name] = np.array([measure_of(item.value, name) for item in batch.items], np.float64)
        for name in self.values:
            for item in batch.items:
                value = column(item.value, name)
                if not is_missing(value):
                    parcel.tally.count(f"{name}\n{orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()}")
        return parcel


def usual_values(
    rows: Frame, names: Sequence[str], rule: Rule, factor: float | None, scratch: Path
) -> tuple[tuple[str, Limits], ...]:
    """The range of each column's usual values; one pass.

    Args:
        scratch: folder for what is too much for memory.
    """
    with _numbers(rows, names, scratch) as found:
        return tuple((name, limits(values, rule, factor)) for name, values in found.items())


@contextmanager
def _numbers(rows: Frame, names: Sequence[str], scratch: Path) -> Generator[dict[str, Spill]]:
    found = spills(scratch, tuple(dict.fromkeys(names)), np.float64)
    rows.measure(_Look(tuple(found), ()), "Measuring", spilled=found)
    try:
        yield found
    finally:
        for values in found.values():
            values.close()


def fillers(rows: Frame, names: Sequence[str], how: str, scratch: Path) -> tuple[tuple[str, Json], ...]:
    """What fills the gaps of each column: the mean, median or mode of its values, or `how` itself; one pass, or none.

    Args:
        scratch: folder for what is too much for memory.

    Raises:
        ConfigError: code `nothing_to_fill_with`.
    """
    if how == "mode":
        found = rows.measure(_Look((), tuple(names)), "Counting values")
        return tuple((name, _mode(found, name)) for name in names)
    if how not in ("mean", "median"):
        return tuple((name, how) for name in names)
    with _numbers(rows, names, scratch) as numbers:
        return tuple((name, _middle(values, name, how)) for name, values in numbers.items())


def _middle(values: Spill, name: str, how: str) -> float:
    middle = mean_of(values) if how == "mean" else median_of(values)
    if np.isnan(middle):
        fix = "Use --fill_with mode, or a text"
        raise ConfigError(f"no row has a number to take the {how} of", where=name, fix=fix, code="nothing_to_fill_with")
    return middle


def _mode(found: Measured, name: str) -> Json:
    """The commonest value, of equally common ones the first in the order of the rows."""
    prefix = f"{name}\n"
    counts = {key: n for key, n in found.tally.counts.items() if key.startswith(prefix)}
    if not counts:
        fix = "Use --missing drop, or --fill_with a text"
        raise ConfigError("no row has a value to fill gaps with", where=name, fix=fix, code="nothing_to_fill_with")
    commonest = max(counts, key=lambda key: counts[key])
    return cast(Json, orjson.loads(commonest.removeprefix(prefix)))
