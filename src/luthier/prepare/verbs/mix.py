"""Mix data sets in wanted proportions, and replay general data beside a domain."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Json
from luthier.prepare.config import VerbConfig
from luthier.prepare.drawing import draw, draw_within, interleaved, largest_total, shared_out, tempered
from luthier.prepare.frame import Frame
from luthier.prepare.order import reordered
from luthier.prepare.parcel import Batch, Parcel
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.verb import Job, Outcome, Verb
from luthier.prepare.view import fields

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


class MixConfig(VerbConfig):
    """What share each data set has, and in what order the rows come."""

    ratios: tuple[float, ...] = ()
    """Share of each input, in their order. Unset: by temperature, or all rows of all."""
    temperature: float | None = Field(default=None, gt=0)
    """Shares in proportion to size ** (1 / T) instead of ratios."""
    unit: Literal["rows", "characters"] = "rows"
    """What shares count: rows, or characters of text, which is nearer to what a model sees."""
    total: int | None = Field(default=None, ge=1)
    """Rows (or characters) of the result. Unset: as stop says."""
    stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """Without total: as much as repeats no row, or as much as uses every row once at least, repeating others."""
    replay: tuple[str, ...] = ()
    """Data sets of general text or chats that are drawn in, so that a model trained on a domain forgets less."""
    replay_ratio: float = Field(default=0.1, gt=0, lt=1)
    """Share of the result that is replay."""
    order: Literal["shuffle", "interleave", "inputs"] = "shuffle"
    """shuffle: at random; interleave: every set spread evenly; inputs: one set after the other."""
    source_column: str | None = None
    """Write the name of the data set that a row is from into this column."""

    @model_validator(mode="after")
    def _possible(self) -> MixConfig:
        if any(ratio < 0 for ratio in self.ratios) or (self.ratios and not sum(self.ratios)):
            raise ValueError("ratios must be 0 or above, and one of them above 0")
        if self.ratios and self.temperature is not None:
            raise ValueError("ratios and temperature both set the shares; give one of them")
        return self


@dataclass(frozen=True)
class _Measure:
    """Size of each row in the unit of the shares, int64 [rows]."""

    characters: bool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        if self.characters:
            sizes = [sum(len(field.text) for field in fields(item.value)) for item in batch.items]
        else:
            sizes = [1] * len(batch.items)
        parcel.columns["size"] = np.array(sizes, np.int64)
        return parcel


@dataclass(frozen=True)
class _Name:
    """Lets drawn rows through, with their source's name when it is wanted."""

    names: tuple[str, ...]
    column: str | None

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        columns = (batch.attached[name].tolist() for name in ("used", "source"))
        for item, used, source in zip(batch.items, *columns, strict=True):
            if not used:
                parcel.drop(item, "not_drawn")
            elif self.column:
                parcel.keep(item, {**item.value, self.column: self.names[source]})
            else:
                parcel.keep(item)
        return parcel


@dataclass(frozen=True)
class _Set:
    """One data set of the mixture."""

    name: str
    rows: Numbers
    """Its rows, as numbers among the rows of all sets."""
    sizes: Numbers
    """Their sizes."""

    @property
    def size(self) -> int:
        return int(self.sizes.sum())


def mix(rows: Frame, config: MixConfig, job: Job) -> Outcome:
    """Mix data sets.

    Raises:
        ConfigError: not one ratio for each input.
        DataError: code `no_rows` when a set that has a share has no text to count.
    """
    if config.ratios and len(config.ratios) != len(rows.sources):
        what = f"{len(config.ratios)} ratios for {len(rows.sources)} inputs"
        raise ConfigError(what, where="--ratios", fix="Give one for each input, in their order")
    frames = [rows, job.open(config.replay)] if config.replay else [rows]
    sets = _sets(frames, config.unit == "characters")
    domain = sets[: len(rows.sources)]
    generator = np.random.default_rng([job.seed, 2])
    report = Report()
    wanted = _wanted(domain, config)
    if config.replay:
        wanted = _with_replay(wanted, sets[len(domain) :], config)
    drawn = [
        _draw(part, int(budget), config.unit, generator) for part, budget in zip(sets, wanted.tolist(), strict=True)
    ]
    if config.order == "interleave":
        order = interleaved([generator.permutation(part) for part in drawn])
    else:
        order = np.concatenate(drawn)
        if config.order == "shuffle":
            generator.shuffle(order)
    _describe(report, sets, drawn, config)
    return Outcome(report, _written(frames, sets, order, config, job))


def _sets(frames: list[Frame], characters: bool) -> list[_Set]:
    """The data sets of all frames, one after the other."""
    sets: list[_Set] = []
    start = 0
    for frame in frames:
        sizes = frame.measure(_Measure(characters), "Measuring").columns["size"]
        origins = frame.origins()
        for number, source in enumerate(frame.sources):
            mine = np.flatnonzero(origins == number)
            sets.append(_Set(source.name, mine + start, sizes[mine]))
        start += len(frame)
    return sets


def _wanted(sets: list[_Set], config: MixConfig) -> Numbers:
    """How much of each input goes into the result, in rows or characters."""
    sizes = np.array([part.size for part in sets], np.int64)
    if config.ratios:
        shares = np.array(config.ratios) / sum(config.ratios)
    elif config.temperature is not None:
        shares = tempered(sizes, config.temperature)
    else:
        shares = sizes / max(1, sizes.sum())
    empty = [part.name for part, share in zip(sets, shares, strict=True) if share > 0 and not part.size]
    if empty or not sizes.sum():
        raise DataError(f"no {config.unit} here to draw from", where=(empty or [sets[0].name])[0], code="no_rows")
    if config.total is not None:
        return shared_out(config.total, shares)
    if config.stop == "first_exhausted":
        return shared_out(largest_total(sizes, shares), shares)
    used = shares > 0
    return shared_out(int(np.ceil(np.max(sizes[used] / shares[used]))), shares)


def _with_replay(wanted: Numbers, replay: list[_Set], config: MixConfig) -> Numbers:
    """The same with the share of replay, divided among its sets by their sizes.

    A `total` holds for everything; without one the domain stays whole and replay comes on top.
    """
    domain = int(wanted.sum())
    if config.total is not None:
        extra = round(domain * config.replay_ratio)
        wanted = shared_out(domain - extra, wanted.astype(np.float64))
    else:
        extra = round(domain * config.replay_ratio / (1 - config.replay_ratio))
    sizes = np.array([part.size for part in replay], np.float64)
    if not sizes.sum():
        raise DataError(f"no {config.unit} here to replay", where=replay[0].name, code="no_rows")
    return np.concatenate([wanted, shared_out(extra, sizes)])


def _draw(part: _Set, budget: int, unit: str, generator: np.random.Generator) -> Numbers:
    if unit == "rows":
        return draw(part.rows, budget, generator)
    places = draw_within(np.arange(len(part.rows)), part.sizes, budget, generator)
    return part.rows[places]


def _written(frames: list[Frame], sets: list[_Set], order: Numbers, config: MixConfig, job: Job):
    total = sum(len(frame) for frame in frames)
    used, source = np.zeros(total, bool), np.zeros(total, np.int32)
    used[order] = True
    for number, part in enumerate(sets):
        source[part.rows] = number
    work = _Name(tuple(part.name for part in sets), config.source_column)
    streams = []
    start = 0
    for frame in frames:
        mine = slice(start, start + len(frame))
        streams.append(frame.scan(work, "Writing", {"used": used[mine], "source": source[mine]}))
        start += len(frame)
    return reordered(chain(*streams), (np.cumsum(used) - 1)[order], job.scratch)


def _describe(report: Report, sets: list[_Set], drawn: list[Numbers], config: MixConfig) -> None:
    taken: list[int] = []
    for part, rows in zip(sets, drawn, strict=True):
        sizes = part.sizes[np.searchsorted(part.rows, rows)]
        taken.append(int(sizes.sum()))
    total = max(1, sum(taken))
    replayed = len(sets) - len(config.replay) if config.replay else len(sets)
    table: list[dict[str, Json]] = []
    for number, (part, rows, size) in enumerate(zip(sets, drawn, taken, strict=True)):
        row: dict[str, Json] = {"set": part.name, "use": "replay" if number >= replayed else "input"}
        row |= {"rows": len(part.rows), "drawn": len(rows)}
        if config.unit == "characters":
            row["characters"] = size
        table.append({**row, "share": round(size / total, 4), "times": round(size / max(1, part.size), 3)})
        if size > 4 * part.size:
            what = f"{part.name} is repeated {size / part.size:.1f} times"
            report.notes.append(f"{what}; beyond about four times repeated data teach little (Muennighoff et al. 2023)")
    report.tables.append(Table("Mixture", table))
    report.charts.append(Chart("Mixture", [part.name for part in sets], taken, y=config.unit))
    report.summary["sets"] = len(sets)
    unused = sum(len(part.rows) - len(np.unique(rows)) for part, rows in zip(sets, drawn, strict=True))
    report.summary["rows not drawn"] = unused


VERB = Verb(
    name="mix",
    config=MixConfig,
    run=mix,
    about="Mix data sets in wanted proportions, and replay general data beside a domain.",
    examples=(
        "luthier data mix code.jsonl chat.jsonl --ratios 0.7 0.3 --output mixed.jsonl",
        "luthier data mix zh.jsonl en.jsonl --temperature 3 --unit characters --output mixed.jsonl",
        "luthier data mix medical.jsonl --replay general.jsonl --replay_ratio 0.2 --source_column source "
        "--output train.jsonl",
    ),
    reads=("replay",),
)
