"""Missing values and numeric outliers, by rule.  Pure functions of columns."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json

Rule = Literal["iqr", "zscore"]
Values = NDArray[np.float64] | NDArray[np.int32]
_AT_ONCE = 2**20
FACTORS: dict[Rule, float] = {"iqr": 1.5, "zscore": 3.0}
"""How far is far: Tukey 1977 (Exploratory Data Analysis) for quartiles, the rule of three sigma for z-scores."""
_NOTHING = frozenset(
    ("", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "-", "--", "?", "无", "空", "缺失", "暂无")
)


class Limits(NamedTuple):
    """The range of usual values, both ends included."""

    low: float
    high: float


def is_missing(value: Json) -> bool:
    """Whether a value says nothing: null, NaN, empty, or a word for nothing (n/a, none, -, 无 ...)."""
    if isinstance(value, str):
        return len(value) <= 10 and value.strip().lower() in _NOTHING
    return value is None or value == [] or value == {} or value != value


def number_of(value: Json) -> float:
    """A value as a number; NaN when it is none.  Text that spells a number counts, truth values do not."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return np.nan
    try:
        number = float(value)
    except ValueError:
        return np.nan
    return number if np.isfinite(number) else np.nan


def limits(values: Values, rule: Rule, factor: float | None = None) -> Limits:
    """The range outside which values are outliers.

    iqr: [Q1 - f * IQR, Q3 + f * IQR], quartiles interpolated linearly.  zscore: mean +- f standard deviations of the
    population.  Of no numbers at all the range is endless.

    Args:
        values: [rows]; of those with a point, NaN where there is no number.
        factor: f; None is the usual one of FACTORS.
    """
    known = _finite(values)
    if not len(known):
        return Limits(-np.inf, np.inf)
    far = FACTORS[rule] if factor is None else factor
    if rule == "iqr":
        low, high = np.quantile(known, [0.25, 0.75])
        return Limits(float(low - far * (high - low)), float(high + far * (high - low)))
    middle = float(known.mean())
    spread = _deviation(known, middle)
    return Limits(middle - far * spread, middle + far * spread)


def _finite(values: Values) -> Values:
    """The numbers that are some, which is all of them as a rule; then nothing is copied."""
    if values.dtype.kind != "f":
        return values
    sound = np.isfinite(values)
    return values if sound.all() else values[sound]


def _deviation(values: Values, mean: float) -> float:
    """Of the population; some values at a time, since there may be one for each of very many rows."""
    squares = 0.0
    for start in range(0, len(values), _AT_ONCE):
        apart = values[start : start + _AT_ONCE] - mean
        squares += float(apart @ apart)
    return float(np.sqrt(squares / len(values)))
