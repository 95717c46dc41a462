"""Missing values and numeric outliers, by rule.  Pure functions of columns."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from luthier.base.records import Json
from luthier.prepare.distribution import deviation_of, mean_of, quantiles
from luthier.prepare.spill import Spill

Rule = Literal["iqr", "zscore"]
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


def limits(values: Spill, rule: Rule, factor: float | None = None) -> Limits:
    """The range outside which values are outliers.

    iqr: [Q1 - f * IQR, Q3 + f * IQR], quartiles interpolated linearly.  zscore: mean +- f standard deviations of the
    population.  Of no numbers at all the range is endless.

    Args:
        values: int32 or float64 [rows], NaN where there is no number.
        factor: f; None is the usual one of FACTORS.
    """
    far = FACTORS[rule] if factor is None else factor
    if rule == "iqr":
        low, high = quantiles(values, (0.25, 0.75))
        found = Limits(float(low - far * (high - low)), float(high + far * (high - low)))
    else:
        middle = mean_of(values)
        spread = deviation_of(values, middle)
        found = Limits(middle - far * spread, middle + far * spread)
    return Limits(-np.inf, np.inf) if np.isnan(found.low) else found
