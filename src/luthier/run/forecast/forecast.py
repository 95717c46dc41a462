"""What a training would need, before a weight is loaded: memory, disk, steps, time, on a device that need not be here.

Data are read through the same cache as training, counts are exact, memory is that of the program itself over a model
without numbers (`footprint`); only time is a guess (`pace`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from luthier.base.console import Console
from luthier.base.errors import ConfigError, LuthierError
from luthier.base.rundir import RunDir
from luthier.data.dataset import Prepared
from luthier.engine.mesh import Mesh
from luthier.model import lowbit
from luthier.model.folder import first_line, model_folder
from luthier.model.layer import Keep
from luthier.model.load import Model, load_tokenizer
from luthier.model.turns import moving_at_once
from luthier.objectives.config import Distill
from luthier.objectives.registry import whole
from luthier.objectives.setting import Part, Whole
from luthier.run.build import build_parts, named, trials
from luthier.run.config import RunConfig
from luthier.run.data import fullest, source_of
from luthier.run.forecast import footprint
from luthier.run.forecast.demand import Demand, demand_of, evaluation_of, largest
from luthier.run.forecast.disk import checkpoint_files
from luthier.run.forecast.hardware import Device
from luthier.run.forecast.lot import Lot, check_supposed, lot_of, read_lot
from luthier.run.forecast.pace import Pace, Work, pace
from luthier.run.forecast.sketch import arithmetic, sketch_teachers, without_numbers
from luthier.run.memory import suggestions
from luthier.run.parts import Run, longest_held
from luthier.run.recompute import fits, keeps_of
from luthier.run.resolve import resolve
from luthier.run.result import followed


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a training would need."""

    model: str
    method: str
    objective: str
    dtype: str
    layers: str
    """Who runs them, and why."""
    parameters: int
    trained: int
    packed: bool
    """Whether sequences lie end to end, without padding."""
    device: Device
    devices: int
    shard: str
    micro_tokens: int
    """Of the fullest micro-batch."""
    logits: int
    """Bytes of the scores that are held at once, where a vocabulary is scored; counted in the demands."""
    data: Lot
    demands: tuple[Demand, ...]
    """Fastest first."""
    chosen: Keep
    evaluation: int | None
    """Bytes that an evaluation holds at most, where there is one."""
    largest: dict[Keep, int]
    """Samples of a micro-batch that just fit, for the fastest way of keeping that fits and for the smallest."""
    checkpoint: dict[str, int]
    """Bytes by file."""
    checkpoints: int | None
    """How many lie on the disk at once, one that is being written included; None: all."""
    pace: Pace | str
    notes: tuple[str, ...]
    suggestions: tuple[str, ...]

    @property
    def demand(self) -> Demand:
        """Of the way that would be chosen."""
        return next(demand for demand in self.demands if demand.keep == self.chosen)

    @property
    def fits(self) -> bool:
        """Whether training, and evaluation, have room on the device."""
        return self.demand.fits and (self.evaluation is None or fits(self.evaluation, self.device.available))

    @property
    def seconds(self) -> float | None:
        """Of all steps, where it can be said."""
        if isinstance(self.pace, str) or self.data.tokens_in_all is None:
            return None
        return self.data.tokens_in_all / (self.data.filled or 1.0) / self.pace.tokens_per_second


def forecast(config: RunConfig, device: Device, devices: int, console: Console) -> Forecast:
    """Plan a training.

    Raises:
        ConfigError, DataError: as training would before its first step; without rows, where they matter.
    """
    config = resolve(config, rows=False)
    config = config.model_copy(update={"model": followed(config.model)})
    check_supposed(config)
    title = config.model.path
    folder = model_folder(config.model, weights=False)
    notes = _notes(config)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(folder)})})
    if isinstance(config.objective, Distill) and config.objective.teacher:
        teacher = model_folder(config.model.model_copy(update={"path": config.objective.teacher}), weights=False)
        objective = config.objective.model_copy(update={"teacher": str(teacher)})
        config = config.model_copy(update={"objective": objective})
    tokenizer = load_tokenizer(config.model)
    max_length = longest_held(config, tokenizer)
    alone = Run(config, console, Mesh(device.kind), RunDir(Path()), max_length)
    parts = build_parts(alone, tokenizer)
    dtype = arithmetic(config.model.dtype, device)
    notes += sketch_teachers(parts, dtype, tokenizer)
    objective = whole(config.objective, parts)
    data = read_lot(alone, parts)
    objective.begin([data.train, *([] if data.validation is None else [data.validation])], console)
    run = replace(alone, mesh=Mesh(device.kind, world=devices))
    with _countable(config):
        return _counted(run, title, notes, tokenizer, dtype, device, parts, objective, data)


@contextmanager
def _countable(config: RunConfig) -> Generator[None]:
    """Say which training cannot be counted without numbers: some methods look at them where they are put on."""
    try:
        yield
    except LuthierError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"{config.method.type} for {named(config)} cannot be counted without weights ({first_line(error)})",
            where="luthier plan",
            code="cannot_plan",
            fix="Start it with --max_steps 1: on its device a run finds out before it trains",
        ) from error


def _counted(
    run: Run,
    title: str,
    notes: list[str],
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    device: Device,
    parts: Sequence[Part],
    objective: Whole,
    data: Prepared,
) -> Forecast:
    """The plan, once the data are read."""
    config, devices = run.config, run.mesh.world
    model, layers = without_numbers(run, tokenizer, dtype, device, parts)
    keeps = _keeps(run, model)
    micro = fullest(run, data)
    made = trials(run, model, objective, data)
    demands = [demand_of(run, model, objective, made, micro, keep, device) for keep in keeps]
    if not all(demand.whole for demand in demands):
        notes.append("The layers are counted, the loss over their output is not: it depends on the rows")
    chosen: Keep = next((demand for demand in demands if demand.fits), demands[-1]).keep
    use = "weights" if not demands[-1].fits and demands[-1].bare > device.available else "step"
    lot = lot_of(run, data, model, source_of(run, data, parts, objective).steps)
    if lot.supposed:
        notes.append(f"No rows were named: each is taken to be {lot.longest:,} tokens long, all of them trained")
    shown = next(demand for demand in demands if demand.keep == chosen)
    evaluation = evaluation_of(run, model, objective, data, shown, device) if data.validation is not None else None
    return Forecast(
        model=title,
        method=config.method.type,
        objective=named(config),
        dtype=str(dtype).removeprefix("torch."),
        layers=layers,
        parameters=_parameters(model),
        trained=sum(weight.numel() for weight in model.trained().values()),
        packed=model.packed,
        device=device,
        devices=devices,
        shard=config.train.shard if devices > 1 else "none",
        micro_tokens=micro,
        logits=0
        if isinstance(config.objective, Distill)  # whose rows are scored by two, and compared
        else footprint.logits_bytes(model, chosen, micro, gpu=device.gpu),
        data=lot,
        demands=tuple(demands),
        chosen=chosen,
        evaluation=evaluation,
        largest=largest(run, model, objective, data, demands, chosen, device),
        checkpoint=checkpoint_files(model, config),
        checkpoints=None if config.save.total_limit is None else config.save.total_limit + 2,
        pace="no rate is known for a student beside its teacher"
        if objective.beside
        else _pace(run, model, device, chosen, dtype),
        notes=tuple(notes),
        suggestions=() if shown.fits else tuple(suggestions(run, use)),
    )


def _notes(config: RunConfig) -> list[str]:
    found: list[str] = []
    if config.model.adapters:
        found.append("Earlier adapters are not read; one of the method's own size is counted")
    if config.model.vocabulary.grows:
        found.append("New tokens are not counted")
    if config.retain.on:
        found.append("What is held on to against forgetting is not counted")
    return found


def _keeps(run: Run, model: Model) -> list[Keep]:
    """The ways of keeping that come into question, fastest first, as `run.build` chooses."""
    config, asked = run.config, run.config.train.gradient_checkpointing
    if not config.method.supports.checkpointing:
        return ["most"]
    if asked:
        return ["some" if asked == "some" else "input"]
    if run.mesh.device.type != "cuda":
        return ["most"]
    if run.split:
        return ["input" if asked is None else "most"]
    return [keep for keep in keeps_of(model) if asked is None or keep in ("all", "most")]


def _parameters(model: Model) -> int:
    return lowbit.count_weights(model.network) + sum(
        weight.numel() for name, weight in model.weights().items() if name.startswith("heads.")
    )


def _pace(run: Run, model: Model, device: Device, keep: Keep, dtype: torch.dtype) -> Pace | str:
    settings = model.base.config.get_text_config()
    layers, width = int(settings.num_hidden_layers), int(settings.hidden_size)
    embedding: Any = model.base.get_input_embeddings()
    together = moving_at_once(model, run.config.method, run.config.seed)
    moving = sum(weight.numel() for weight in together.values())
    looked_up = 0 if model.tied else int(embedding.weight.numel())
    quant = run.config.model.quant
    adapted = model.adapted
    work = Work(
        weights=_parameters(model) - looked_up,
        moving=moving if adapted else max(0, moving - looked_up),
        attention=2.0 * run.max_length * width * layers,
    )
    if run.split:
        return "no rate was measured for weights that are split over devices on this shape"
    return pace(
        device,
        run.mesh.world,
        work,
        keep,
        by_hand=model.runs_by_hand,
        quant=(str(quant.method), quant.bits or 8) if quant.on else None,
        dtype=str(dtype).removeprefix("torch."),
    )
