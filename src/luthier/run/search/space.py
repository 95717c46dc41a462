"""What a search tries: choices and ranges of settings, and how many trials it makes of them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from luthier.base.config import Config, Named, Tree, assign, merge, validate
from luthier.base.errors import ConfigError
from luthier.run.config import RunConfig
from luthier.run.resolve import resolve

Direction = Literal["minimize", "maximize"]
Told = str | int | float
"""A value in the words of the search's journal: a number of a range, or the label of a choice."""

_DIGITS = 4
_FALLING = ("loss", "perplexity", "bits_per_byte", "bits_per_character", "mse", "mae", "rmse", "divergence", "kl")
_RISING = ("accuracy", "f1", "precision", "recall", "pearson", "spearman", "map", "mcc", "exact_match", "auc", "r2")
_RISING_AT = ("ndcg@", "mrr@", "recall@", "precision@", "hits@", "map@")
_NOT_TRIED = ("search", "stages", "output_dir", "device", "save", "log", "eval", "data.validation", "data.split_ratio")
"""Settings that are the search's own, or without which trials could not be compared."""
_CORNERS = 64


class SearchConfig(Config):
    """What is searched, and how long."""

    space: dict[str, Any] = {}
    """What is tried of each setting, by its path or known name: a list of choices, or a range as text: log LOW HIGH,
    linear LOW HIGH, linear LOW HIGH step STEP."""
    metric: Named = "eval_loss"
    """Value of the evaluation rows that says which trial is best; of each trial its best evaluation counts."""
    direction: Direction | None = None
    """Whether less or more of it is better. Unset: known by the metric's name."""
    trials: int = Field(default=20, ge=1)
    """Trials, failed and pruned ones included; settings that were tried before are not trained again."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which trials under way are stopped, to be gone on with, and no new one is begun."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """tpe: near what was good before; random; grid: every combination, which takes choices and steps only."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of what is tried. Unset: the run's own. One trial at a time, the same seed tries the same."""
    pruning: Literal["median", "hyperband", "off"] = "median"
    """Stop trials early. median: where its best evaluation is worse than the median of the others at that step;
    hyperband: only the better third of each round goes on."""
    startup_trials: int = Field(default=5, ge=0)
    """Trials that end before tpe and median rely on what they have seen."""
    parallel: int | None = Field(default=None, ge=1)
    """Trials at the same time. Unset: one on each GPU, one on a CPU."""
    keep: int = Field(default=3, ge=1)
    """Trials whose checkpoints are kept, the best ones; of all others everything but the checkpoints is."""


class SearchRun(RunConfig):
    """One training, and what of it is searched."""

    search: SearchConfig = SearchConfig()
    """What is searched."""


@dataclass(frozen=True, slots=True)
class Choices:
    """A setting that takes one of several values."""

    path: str
    values: tuple[Any, ...]

    def labels(self) -> list[str]:
        """The values as text, each different."""
        return [value if isinstance(value, str) else json.dumps(value) for value in self.values]

    def count(self) -> int:
        """How many values it can have."""
        return len(self.values)

    def grid(self) -> Sequence[Told]:
        """Everything it can be."""
        return self.labels()

    def value(self, told: Told) -> Any:
        """The setting's value."""
        return self.values[self.labels().index(str(told))]

    def ends(self) -> Sequence[Told]:
        """Values that must all be possible."""
        return self.labels()


@dataclass(frozen=True, slots=True)
class Range:
    """A setting that is a number between two others, both included."""

    path: str
    low: float
    high: float
    log: bool
    whole: bool
    step: float | None = None

    def count(self) -> int | None:
        """How many values it can have; None where they are beyond number."""
        step = self.step or (1 if self.whole else None)
        return None if step is None else math.floor((self.high - self.low) / step + 1e-9) + 1

    def grid(self) -> Sequence[Told]:
        """Everything it can be, where that can be counted."""
        return [self.value(self.low + number * (self.step or 1)) for number in range(self.count() or 0)]

    def value(self, told: Told) -> int | float:
        """The setting's value: of numbers that are not whole, four digits, which one can read and type."""
        if self.whole:
            return round(float(told))
        return min(self.high, max(self.low, float(f"{float(told):.{_DIGITS}g}")))

    def ends(self) -> Sequence[Told]:
        """Values that must all be possible."""
        return [self.value(self.low), self.value(self.high)]


Dimension = Choices | Range


def size(dimensions: Sequence[Dimension]) -> int | None:
    """How many combinations there are; None where they are beyond number."""
    counts = [dimension.count() for dimension in dimensions]
    return None if None in counts else math.prod(count or 0 for count in counts)


def values_of(dimensions: Sequence[Dimension], told: Mapping[str, Told]) -> dict[str, Any]:
    """The settings of one trial by their paths."""
    return {dimension.path: dimension.value(told[dimension.path]) for dimension in dimensions}


def nested(values: Mapping[str, Any]) -> Tree:
    """Settings by dotted path as a tree."""
    tree: Tree = {}
    for path, value in values.items():
        assign(tree, path, value)
    return tree


def with_values(tree: Tree, values: Mapping[str, Any]) -> RunConfig:
    """The resolved settings of a run in which some are these.

    Raises:
        ConfigError: they cannot work.
    """
    return resolve(validate(RunConfig, merge(tree, nested(values))))


def direction_of(metric: str) -> Direction | None:
    """Whether less or more of a metric is better, by its name; None for a name that does not tell."""
    name = metric.removeprefix("eval_").rpartition("/")[2].lower()
    words = {name, name.rpartition("_")[2]}
    if words & {*_FALLING} or name.endswith(_FALLING):
        return "minimize"
    if words & {*_RISING} or name.startswith(_RISING_AT) or name.endswith(_RISING) or name.startswith(_RISING):
        return "maximize"
    return None


def check(tree: Tree, settings: SearchConfig, dimensions: Sequence[Dimension]) -> tuple[RunConfig, Direction]:
    """Refuse what could only fail later; the run with the first value of everything, and what is better.

    Raises:
        ConfigError: nothing or too little to choose from, values that cannot work, nothing to judge trials by.
    """
    if not dimensions:
        fix = "Give --space space.yaml, or --space.learning_rate log 1e-5 1e-3"
        raise ConfigError("nothing was named that is to be tried", where="--space", fix=fix)
    for dimension in dimensions:
        if any(dimension.path == path or dimension.path.startswith(path + ".") for path in _NOT_TRIED):
            what = "trials that differ in this could not be compared, or it is the search's own"
            raise ConfigError(what, where=f"space.{dimension.path}", fix="Take it out of the space")
    endless = [dimension.path for dimension in dimensions if dimension.count() is None]
    if settings.sampler == "grid" and endless:
        fix = "List choices, write linear LOW HIGH step STEP, or use --sampler tpe"
        raise ConfigError("a grid needs values that can be counted", where=f"space.{endless[0]}", fix=fix)
    config = _check_values(tree, dimensions)
    if config.stages:
        raise ConfigError("a search is over one run, not over stages", where="stages", fix="Search one stage's recipe")
    if config.save.resume:
        raise ConfigError("every trial starts anew", where="--resume_from_checkpoint", fix="Leave it out")
    if not config.judged:
        fix = "Give --val_dataset, or hold rows out with --split_dataset_ratio 0.05"
        raise ConfigError("trials need validation data to be judged by", where="--metric", fix=fix)
    found = settings.direction or direction_of(settings.metric)
    if found is None:
        what = f"nobody said whether more or less of {settings.metric!r} is better"
        raise ConfigError(what, where="--metric", fix="Add --direction minimize or --direction maximize")
    return config, found


def _check_values(tree: Tree, dimensions: Sequence[Dimension]) -> RunConfig:
    """Try the ends of every range and all choices: together where they are few, else one setting after the other."""
    ends = [[dimension.value(told) for told in dimension.ends()] for dimension in dimensions]
    paths = [dimension.path for dimension in dimensions]
    corners = list(itertools.product(*ends)) if math.prod(map(len, ends)) <= _CORNERS else _one_by_one(ends)
    first: RunConfig | None = None
    for corner in corners:
        values = dict(zip(paths, corner, strict=True))
        try:
            first = with_values(tree, values) if first is None else (with_values(tree, values), first)[1]
        except ConfigError as error:
            shown = ", ".join(f"{path} = {value}" for path, value in values.items())
            where = f"space, {shown}: {error.where}" if error.where else f"space, {shown}"
            raise ConfigError(error.what, where=where, fix=error.fix, code=error.code) from error
    assert first is not None
    return first


def _one_by_one(ends: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    start = tuple(each[0] for each in ends)
    others = [(*start[:n], value, *start[n + 1 :]) for n, each in enumerate(ends) for value in each[1:]]
    return [start, *others]


def shown(values: Mapping[str, Any]) -> str:
    """Settings for a person: by their last names where those tell them apart."""
    return "  ".join(f"{name} {plain(value)}" for name, value in zip(short(values), values.values(), strict=True))


def short(paths: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The last name of each path; the path where two have the same."""
    last = [path.rpartition(".")[2] for path in paths]
    return [name if last.count(name) == 1 else path for name, path in zip(last, paths, strict=True)]


def plain(value: Any) -> Any:
    """A value as JSON and people have it."""
    return list(value) if isinstance(value, tuple) else value
