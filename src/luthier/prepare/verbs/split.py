"""Split rows into training, validation and test set: by label, by group, by time, without leaks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import model_validator

from luthier.base.errors import DataError
from luthier.base.records import Json
from luthier.prepare.config import VerbConfig
from luthier.prepare.frame import Frame
from luthier.prepare.groups import (
    AT_ONCE,
    Rows,
    first_of_equals,
    frequencies,
    join,
    positions,
    shared,
    stand_alone,
    width,
)
from luthier.prepare.identity import RowKeys, keys_of
from luthier.prepare.labels import Labels, read_labels
from luthier.prepare.parcel import Batch, Parcel
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.spill import Spill
from luthier.prepare.splits import split_by_time, split_groups
from luthier.prepare.verb import PARTS, Job, Outcome, Verb
from luthier.prepare.view import column, text_of

_NAMES = {2: PARTS[:2], 3: PARTS}


class SplitConfig(VerbConfig):
    """Which rows go where; `--output x.jsonl` makes x.train.jsonl and so on, a folder takes train.jsonl and so on."""

    ratio: tuple[float, ...] = (0.9, 0.05, 0.05)
    """Shares of the parts, as fractions or on any scale: 0.9 0.05 0.05, or 8 1 1."""
    names: tuple[str, ...] = ()
    """Names of the parts. Unset: train and validation, or train, validation and test."""
    stratify: str | None = None
    """Column whose values every part is to have in the same proportions."""
    group: tuple[str, ...] = ()
    """Columns (a conversation, a document, a user): rows with equal values stay in one part."""
    time: str | None = None
    """Column with a time (ISO 8601 or a number): the earliest rows go to the first part, the latest to the last."""
    same_text: bool = True
    """Keep rows with the same text in one part, so that nothing is tested that was trained."""

    @model_validator(mode="after")
    def _fits_together(self) -> SplitConfig:
        if len(self.ratio) < 2:
            raise ValueError("--ratio needs the shares of two parts or more")
        if any(not share > 0 or not math.isfinite(share) for share in self.ratio):
            raise ValueError("--ratio: every share must be above 0")
        if self.names and len(self.names) != len(self.ratio):
            raise ValueError(f"{len(self.names)} names for {len(self.ratio)} ratios; give one for each")
        if not self.names and len(self.ratio) not in _NAMES:
            raise ValueError(f"name the {len(self.ratio)} parts with names")
        if len(set(self.parts)) < len(self.parts) or any(not name.replace("_", "").isalnum() for name in self.parts):
            raise ValueError("names of parts must differ, and consist of letters, digits and underscores")
        if self.time and self.stratify:
            raise ValueError("a split by time cannot also be stratified")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts' names."""
        return self.names or _NAMES[len(self.ratio)]


@dataclass(frozen=True)
class _Texts:
    """Work that gives every row a key of its text, uint64 [rows, 2]; a row without text is its own."""

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        texts = [text_of(item.value) or "\0" + item.json().decode() for item in batch.items]
        parcel.columns["key"] = keys_of(texts)
        return parcel


@dataclass(frozen=True)
class _Times:
    """Work that reads every row's time, float64 [rows], in seconds or as the number that it is."""

    name: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        times = np.full(len(batch.items), np.nan)
        for number, item in enumerate(batch.items):
            value = column(item.value, self.name)
            moment = _moment(value)
            if moment is None:
                shown = orjson.dumps(value).decode()[:60]
                what = f"the column {self.name!r} holds {shown}, which is no time"
                fix = "Times are ISO 8601 (2024-05-31T12:00:00) or numbers; clean or name another column"
                raise DataError(what, where=str(item.where), fix=fix, code="not_a_time")
            times[number] = moment
        parcel.columns["time"] = times
        return parcel


def _moment(value: Json) -> float | None:
    """Seconds of a time in text (without a zone: UTC), or a number as it is."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True)
class _Send:
    """Sends each row to its part."""

    parts: tuple[str, ...]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item, part in zip(batch.items, batch.attached["part"].tolist(), strict=True):
            parcel.keep(item, part=self.parts[part])
        return parcel


def split(rows: Frame, config: SplitConfig, job: Job) -> Outcome:
    """Divide rows into parts; every row goes to one.

    Raises:
        DataError: `not_a_time`; `empty_part` when there are too few rows or groups for the parts.
    """
    groups = _groups(rows, config, job)
    labels = read_labels(rows, config.stratify) if config.stratify else None
    if config.time:
        times = Spill(job.scratch / "times", np.float64)
        rows.measure(_Times(config.time), "Reading times", spilled={"time": times})
        parts = split_by_time(times.all(), groups, config.ratio)
        times.close()
    else:
        strata = labels.codes if labels else np.broadcast_to(np.int32(0), len(rows))
        parts = split_groups(groups, strata, config.ratio, job.seed)
    counts = frequencies(parts, len(config.parts))
    if not counts.all():
        name = config.parts[int(np.argmin(counts))]
        what = f"{len(rows):,} rows in {len(np.unique(groups)):,} groups leave nothing for the part {name!r}"
        raise DataError(what, code="empty_part", fix="Use fewer parts, other ratios, or group by less")
    report = _report(config, parts, groups, labels)
    return Outcome(report, rows.scan(_Send(config.parts), "Writing", {"part": parts}))


def _groups(rows: Frame, config: SplitConfig, job: Job) -> Rows:
    """Rows that must stay together, by the number of the first of them; [N]."""
    works: list[Any] = [RowKeys(config.group)] if config.group else []
    works += [_Texts()] if config.same_text else []
    first: Rows | None = None
    for work in works:
        keys = Spill(job.scratch / "keys", np.uint64, 2)
        for parcel in rows.scan(work, "Hashing rows"):
            keys.append(parcel.columns["key"])
        found = first_of_equals(keys)
        keys.close()
        if first is None:
            first = found
        else:
            again = positions(~stand_alone(found))
            first = join(first, np.stack([again, found[again]], axis=1))
    if first is not None:
        return first
    for _ in rows.scan(_count, "Reading rows"):
        pass
    return np.arange(len(rows), dtype=width(len(rows)))


def _count(_: Batch) -> Parcel:
    return Parcel()


def _report(config: SplitConfig, parts: NDArray[np.int8], groups: Rows, labels: Labels | None) -> Report:
    report = Report()
    counts = frequencies(parts, len(config.parts)).tolist()
    wanted = [share / sum(config.ratio) for share in config.ratio]
    total = len(parts)
    report.tables.append(
        Table(
            "Parts",
            [
                {"part": name, "rows": rows, "share": round(rows / total, 4), "wanted": round(share, 4)}
                for name, rows, share in zip(config.parts, counts, wanted, strict=True)
            ],
        )
    )
    several = groups[shared(groups)]
    report.summary = {"groups kept whole": len(np.unique(several)), "rows in them": len(several)}
    report.charts.append(Chart("Rows of each part", list(config.parts), [float(n) for n in counts], x="part"))
    off = max(abs(rows / total - share) for rows, share in zip(counts, wanted, strict=True))
    if off > 0.02:
        report.notes.append(
            f"the parts miss their ratios by up to {off:.1%}, because groups and equal times stay whole"
        )
    if labels:
        report.tables.append(Table(f"Rows of each part by {config.stratify}", list(_by_label(config, parts, labels))))
        missing = int((labels.codes < 0).sum())
        if missing:
            report.notes.append(
                f"{missing:,} rows have no {config.stratify}; they were divided like a class of their own"
            )
    return report


def _by_label(config: SplitConfig, parts: NDArray[np.int8], labels: Labels) -> Iterator[dict[str, Json]]:
    names, many = [*labels.names, "(none)"], len(config.parts)
    counts = np.zeros((len(names), many), np.int64)
    for at in range(0, len(parts), AT_ONCE):
        codes = labels.codes[at : at + AT_ONCE].astype(np.int64)
        codes[codes < 0] = len(labels.names)
        counts += frequencies(codes * many + parts[at : at + AT_ONCE], counts.size).reshape(counts.shape)
    for name, found in zip(names, counts.tolist(), strict=True):
        if any(found):
            yield {"label": name, **dict(zip(config.parts, found, strict=True))}


VERB = Verb(
    name="split",
    config=SplitConfig,
    run=split,
    about="Split rows into training, validation and test set: by label, by group, by time, without leaks.",
    examples=(
        "luthier data split my.jsonl --ratio 0.9 0.05 0.05 --output my.jsonl",
        "luthier data split banking.csv --ratio 0.8 0.2 --stratify category --output parts/",
        "luthier data split chats.jsonl --group conversation_id --output chats.jsonl",
        "luthier data split news.jsonl --time date --output news.jsonl --report split.json",
    ),
    parts=lambda config: config.parts,
    sample={"ratio": [0.6, 0.2, 0.2], "stratify": "label"},
)
