"""The memory of a search: optuna's study, its journal, and the samplers and pruners it proposes and ends trials by."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.base.errors import MissingExtra
from luthier.base.rundir import write_atomic
from luthier.run.search.space import Choices, Dimension, Direction, SearchConfig, Told

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL = "journal.jsonl"
SAME, FAULT, STEPS = "same_as", "fault", "steps"
"""What is noted of a trial: the one before it with the same settings; why it failed; the steps it took."""


def load_optuna() -> Any:
    """The library, quiet.  Raises MissingExtra."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("optuna", "search", what_for="luthier search") from error
    optuna.logging.set_verbosity(logging.ERROR)
    return optuna


def open_study(folder: Path, direction: Direction) -> Study:
    """The search's journal in a folder, new or as it was left.

    Lines of JSON; optuna pickles nothing with this storage.  A line that a crash has cut off is taken away.
    """
    optuna = load_optuna()
    file = folder / JOURNAL
    if file.exists() and (told := file.read_bytes()) and not told.endswith(b"\n"):
        write_atomic(file, told[: told.rfind(b"\n") + 1])
    backend = optuna.storages.journal.JournalFileBackend(str(file))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.create_study(storage=storage, study_name="search", direction=direction, load_if_exists=True)


def sampler_of(
    settings: SearchConfig, dimensions: Sequence[Dimension], seed: int, number: int, *, several: bool
) -> BaseSampler:
    """The sampler of one trial: its chance depends on nothing but the seed and the trial's number.

    several: whether trials run side by side.
    """
    samplers = load_optuna().samplers
    own = (seed * 1_000_003 + number) % 2**32
    match settings.sampler:
        case "random":
            return samplers.RandomSampler(seed=own)
        case "grid":
            values = {dimension.path: dimension.grid() for dimension in dimensions}
            return samplers.GridSampler(values, seed=seed % 2**32)
        case "tpe":
            first = settings.startup_trials
            return samplers.TPESampler(n_startup_trials=first, seed=own, constant_liar=several)


def pruner_of(settings: SearchConfig, every: int | None) -> BasePruner:
    """What ends trials early.  every: steps between evaluations."""
    pruners = load_optuna().pruners
    match settings.pruning:
        case "median":
            return pruners.MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=0)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=every or 1)
        case "off":
            return pruners.NopPruner()


def distributions(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    """What is tried, in optuna's words, by path."""
    kinds = load_optuna().distributions
    found: dict[str, BaseDistribution] = {}
    for each in dimensions:
        if isinstance(each, Choices):
            labels: list[Told] = [*each.labels()]
            found[each.path] = kinds.CategoricalDistribution(labels)
        elif each.whole:
            step = int(each.step or 1)
            found[each.path] = kinds.IntDistribution(int(each.low), int(each.high), log=each.log, step=step)
        else:
            found[each.path] = kinds.FloatDistribution(each.low, each.high, log=each.log, step=each.step)
    return found


def ranked(study: Study) -> list[FrozenTrial]:
    """Trials that came to their end, the best first; of equals the earlier one."""
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE" and SAME not in trial.user_attrs]
    return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
