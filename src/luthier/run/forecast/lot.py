"""The data of a run, and the steps it makes: rows that were read, or as many tokens as there may be where none were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.base.errors import ConfigError, DataError
from luthier.data.dataset import Prepared, together
from luthier.data.pack import epoch_packs
from luthier.model.load import Model
from luthier.objectives.config import Pretrain, Sft
from luthier.objectives.setting import Part
from luthier.run.config import RunConfig
from luthier.run.data import learnable, longest, tokenise
from luthier.run.forecast import footprint
from luthier.run.parts import Run


@dataclass(frozen=True, slots=True)
class Lot:
    """The data of a run, and the steps it makes."""

    samples: int
    """Of an epoch; 0 when streamed, or when none were read."""
    tokens: int | None
    """Of an epoch; None when nobody has counted them."""
    trained: int | None
    longest: int
    per_step: int
    """Samples, or packs, of a step."""
    steps: int | None
    """None where neither rows nor --max_steps say it."""
    epochs: float | None
    filled: float | None
    """Share of each pack, or of what padding makes of each micro-batch, that holds tokens."""
    supposed: bool = False
    """Whether no row was read, and each is taken to be as long as it may be."""

    @property
    def tokens_in_all(self) -> float | None:
        """Of the whole run."""
        if self.supposed:
            return None if self.steps is None else float(self.steps * self.per_step * self.longest)
        return None if self.tokens is None or self.epochs is None else self.tokens * self.epochs


def check_supposed(config: RunConfig) -> None:
    """Raises ConfigError where no rows were named and what is planned depends on them."""
    if not _supposed(config):
        return
    if not isinstance(config.objective, Pretrain | Sft):
        raise ConfigError(
            f"what a step of {config.objective.type} holds depends on its rows, and none were named",
            where="--dataset",
            fix="Give at least one file or data set",
        )
    if "max_length" not in config.data.model_fields_set:
        raise ConfigError(
            "no training data was named, and not how long its samples are",
            where="--dataset",
            fix="Give a file or data set, or --max_length and --per_device_train_batch_size to plan without one",
        )


def _supposed(config: RunConfig) -> bool:
    return not any(config.sets.values())


def read_lot(run: Run, parts: Sequence[Part]) -> Prepared:
    """The data, as training reads them; nothing where no rows were named.

    Raises:
        DataError: as training would, before its first step.
    """
    found = tokenise(run, parts)
    if _supposed(run.config):
        return together(found)
    data = learnable(run, parts, found, together(found))
    if not len(data.train):
        raise DataError("there is no row to train on", where=" ".join(run.config.data.datasets), code="no_rows")
    return data


def lot_of(run: Run, data: Prepared, model: Model, steps_of: Callable[[float], int | None]) -> Lot:
    """The figures of a run's data.

    Args:
        steps_of: the steps of so many epochs; None where an epoch has no end.
    """
    config = run.config
    if _supposed(config):
        return Lot(0, None, None, longest(run, data), run.per_step, config.train.max_steps, None, None, supposed=True)
    steps = config.train.max_steps or steps_of(config.train.epochs) or 0
    an_epoch = steps_of(1.0)
    streaming = config.data.streaming
    tokens = None if streaming else int(data.train.lengths.sum())
    filled = None
    if config.data.packing and tokens is not None:
        order = np.random.default_rng([config.seed, 0]).permutation(len(data.train))
        filled = tokens / (len(epoch_packs(data.train.lengths, order, run.max_length, None)) * run.max_length)
    elif not model.packed and tokens is not None:
        filled = footprint.padded_share(
            data.train.lengths, config.train.micro_batch * run.max_length, config.seed, run.per_step
        )
    train = [part for part in data.report.sets if part.use == "train"]
    held = sum(part.tokens for part in train)
    return Lot(
        samples=0 if streaming else len(data.train),
        tokens=tokens,
        trained=None
        if tokens is None or not held
        else round(tokens * sum(part.trained_tokens for part in train) / held),
        longest=longest(run, data),
        per_step=run.per_step,
        steps=steps,
        epochs=steps / an_epoch if an_epoch else None,
        filled=filled,
    )
