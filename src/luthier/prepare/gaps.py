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
    """The range outside which values are outliers; of no numbers at all it is endless.

    Args:
        values: int32 or float64 [rows], NaN where there is no number.
        factor: how far is far; None is the usual one of FACTORS.
    """
    if rule == "iqr":
        low, high = quantiles(values, (0.25, 0.75)).tolist()
        return by_quartiles(low, high, factor)
    mean = mean_of(values)
    return by_deviation(mean, deviation_of(values, mean), factor)


def by_quartiles(low: float, high: float, factor: float | None = None) -> Limits:
    """[Q1 - f * IQR, Q3 + f * IQR] of quartiles that were interpolated linearly."""
    far = (FACTORS["iqr"] if factor is None else factor) * (high - low)
    return _known(low - far, high + far)


def by_deviation(mean: float, deviation: float, factor: float | None = None) -> Limits:
    """Mean +- f standard deviations of the population."""
    far = (FACTORS["zscore"] if factor is None else factor) * deviation
    return _known(mean - far, mean + far)


def _known(low: float, high: float) -> Limits:
    return Limits(-np.inf, np.inf) if np.isnan(low) else Limits(low, high)
