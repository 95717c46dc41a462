"""Give classes or sources their share: repeat rows, leave rows out, or write loss weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.prepare.config import VerbConfig
from luthier.prepare.drawing import Weighting, class_weights, draw, shared_out, tempered
from luthier.prepare.frame import Frame
from luthier.prepare.groups import positions, width
from luthier.prepare.labels import Labels, read_labels
from luthier.prepare.order import reordered
from luthier.prepare.parcel import Batch, Parcel
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.verb import Job, Outcome, Verb

Numbers = NDArray[np.int64]


class BalanceConfig(VerbConfig):
    """What is balanced, and how."""

    by: str = "label"
    """Column whose values are balanced (dotted paths reach deeper)."""
    by_input: bool = False
    """Balance the data sets named as inputs instead of the values of a column."""
    method: Literal["oversample", "undersample", "temperature", "weights"] = "oversample"
    """oversample: repeat rows up to the largest class; undersample: leave out rows down to the smallest; temperature:
    draw in proportion to n ** (1/T); weights: leave the rows and write a loss weight into each."""
    target: int | None = Field(default=None, ge=1)
    """Rows of every class after over- or under-sampling, instead of the largest or smallest class."""
    ratio: dict[str, float] = {}
    """Shares of the classes, {"spam": 1, "ham": 3}; unset, all are equal. With weights: multiplied onto the weights."""
    max_repeats: int | None = Field(default=None, ge=1)
    """Oversampling uses no row more often than this."""
    temperature: float = Field(default=3.0, gt=0)
    """T of temperature sampling: 1 leaves the shares as they are, large values make them equal."""
    rows: int | None = Field(default=None, ge=1)
    """Rows of the result of temperature sampling. Unset: as many as there are."""
    weighting: Weighting = "balanced"
    """balanced: N / (K n); sqrt: its square root; effective: by the effective number of samples."""
    beta: float = Field(default=0.999, gt=0, lt=1)
    """beta of the effective number of samples."""
    weight_column: str = "weight"
    """Column the weight is written to, which training reads; a weight that is there is multiplied."""
    unlabelled: Literal["keep", "drop"] = "keep"
    """Rows without a label: keep them as they are, or leave them out."""
    shuffle: bool = True
    """Shuffle the rows that were drawn. Off: they stay in the order of the input."""

    @model_validator(mode="after")
    def _ratios(self) -> BalanceConfig:
        if any(share <= 0 for share in self.ratio.values()):
            raise ValueError(
                "every share in ratio must be above 0; leave a class out with luthier data select or clean"
            )
        if self.target is not None and self.method not in ("oversample", "undersample"):
            raise ValueError(f"target is for over- and under-sampling, not for {self.method}")
        if self.ratio and self.method == "temperature":
            raise ValueError("ratio and temperature both set the shares; give one of them")
        if self.rows is not None and self.method != "temperature":
            raise ValueError("rows is for temperature sampling; over- and under-sampling take target")
        return self


@dataclass(frozen=True)
class _Weigh:
    """Writes the attached weight into each row."""

    column: str
    drop: bool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        codes = batch.attached["code"].tolist()
        for item, code, weight in zip(batch.items, codes, batch.attached["weight"].tolist(), strict=True):
            if code < 0:
                if self.drop:
                    parcel.drop(item, "unlabelled")
                else:
                    parcel.keep(item)
                continue
            before = item.value.get(self.column)
            if isinstance(before, int | float) and not isinstance(before, bool):
                weight *= before
            elif before is not None:
                parcel.drop(item, "bad_weight", weight=before)
                continue
            parcel.keep(item, {**item.value, self.column: round(weight, 6)})
        return parcel


@dataclass(frozen=True)
class _Used:
    """Lets rows through that are drawn at least once, and says why the others are left out."""

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        columns = (batch.attached[name].tolist() for name in ("used", "code"))
        for item, used, code in zip(batch.items, *columns, strict=True):
            if used:
                parcel.keep(item)
            else:
                parcel.drop(item, "unlabelled" if code < 0 else "undersampled")
        return parcel


def balance(rows: Frame, config: BalanceConfig, job: Job) -> Outcome:
    """Balance classes or sources.

    Raises:
        DataError: code `no_label` when no row has a label.
        ConfigError: `ratio` names a class that is not there, or leaves one out.
    """
    labels = _by_input(rows) if config.by_input else read_labels(rows, config.by)
    shares = _shares(labels, config.ratio)
    report = Report(summary={"classes": len(labels.names)})
    without = int((labels.codes < 0).sum())
    if without:
        report.summary["without a label"] = without
    if config.method == "weights":
        weights = class_weights(labels.counts, config.weighting, config.beta) * shares * len(shares)
        weights *= labels.counts.sum() / max(float((weights * labels.counts).sum()), 1e-300)
        table = [{**row, "weight": round(w, 4)} for row, w in zip(labels.table(), weights.tolist(), strict=True)]
        report.tables.append(Table("Weights", table))
        attached = {"code": labels.codes, "weight": weights[labels.codes]}
        work = _Weigh(config.weight_column, config.unlabelled == "drop")
        return Outcome(report, rows.scan(work, "Writing weights", attached))
    wanted = _wanted(labels.counts, shares, config)
    generator = np.random.default_rng([job.seed, 1])
    kept = int((labels.codes < 0).sum()) if config.unlabelled == "keep" else 0
    order = np.empty(int(wanted.sum()) + kept, width(len(rows)))
    filled = 0
    for code, count in enumerate(wanted.tolist()):
        drawn = draw(positions(labels.codes == code), count, generator)
        order[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
    if kept:
        order[filled:] = positions(labels.codes < 0)
        filled += kept
    order = order[:filled]
    order.sort()
    if config.shuffle:
        generator.shuffle(order)
    _describe(report, labels, wanted, config.max_repeats)
    used = np.zeros(len(rows), bool)
    used[order] = True
    before = np.cumsum(used, dtype=order.dtype)
    before -= 1
    order = before[order]
    del before
    stream = rows.scan(_Used(), "Writing", {"used": used, "code": labels.codes})
    return Outcome(report, reordered(stream, order, job.scratch))


def _by_input(rows: Frame) -> Labels:
    rows.measure(_nothing, "Counting rows")
    names = tuple(source.name for source in rows.sources)
    return Labels(names, rows.origins())


def _nothing(_: Batch) -> Parcel:
    return Parcel()


def _shares(labels: Labels, ratio: Mapping[str, float]) -> NDArray[np.float64]:
    """The share of each class, adding up to 1."""
    wrong = [name for name in ratio if name not in labels.names] + [name for name in labels.names if name not in ratio]
    if ratio and wrong:
        known = ", ".join(labels.names[:20])
        raise ConfigError(
            f"a share for each class is needed; {wrong[0]!r} differs", where="ratio", fix=f"Known: {known}"
        )
    shares = np.array([ratio.get(name, 1.0) for name in labels.names])
    return shares / shares.sum()


def _wanted(counts: Numbers, shares: NDArray[np.float64], config: BalanceConfig) -> Numbers:
    """Rows of each class in the result."""
    if config.method == "temperature":
        return shared_out(config.rows or int(counts.sum()), tempered(counts, config.temperature))
    relative = shares * len(shares)
    if config.target is not None:
        wanted = np.rint(config.target * relative).astype(np.int64)
    else:
        filled = counts / relative
        wanted = np.rint((filled.max() if config.method == "oversample" else filled.min()) * relative).astype(np.int64)
    if config.method == "undersample":
        return np.minimum(wanted, counts)
    wanted = np.maximum(wanted, counts)  # oversampling never loses a row
    return np.minimum(wanted, counts * config.max_repeats) if config.max_repeats else wanted


def _describe(report: Report, labels: Labels, wanted: Numbers, cap: int | None) -> None:
    before = labels.counts
    total = max(1, int(wanted.sum()))
    table: list[dict[str, Json]] = [
        {"label": name, "before": b, "after": a, "share": round(a / total, 4), "times": round(a / max(b, 1), 3)}
        for name, b, a in zip(labels.names, before.tolist(), wanted.tolist(), strict=True)
    ]
    report.tables.append(Table("Classes", table))
    for title, counts in (("Classes before", before), ("Classes after", wanted)):
        report.charts.append(Chart(title, labels.names[:40], counts[:40].tolist()))
    repeated = int(np.maximum(wanted - before, 0).sum())
    report.summary["repeated"] = repeated
    report.summary["left out"] = int(np.maximum(before - wanted, 0).sum())
    often = float(np.max(wanted / np.maximum(before, 1), initial=0))
    if often > 10:
        what = f"rows of one class come {often:.0f} times; a model learns such rows by heart"
        report.notes.append(f"{what}: consider weights, augmentation or max_repeats")
    if cap and bool((wanted < wanted.max()).any()):
        report.notes.append(f"max_repeats {cap} keeps some classes smaller than the others")


VERB = Verb(
    name="balance",
    config=BalanceConfig,
    run=balance,
    about="Give classes or sources their share: repeat rows, leave rows out, or write loss weights.",
    examples=(
        "luthier data balance spam.jsonl --method oversample --output balanced.jsonl",
        "luthier data balance train.csv --by intent --method undersample --target 100 --output small.jsonl",
        "luthier data balance train.jsonl --method weights --weighting effective --output weighted.jsonl",
        "luthier data balance en.jsonl zh.jsonl --by_input --method temperature --temperature 3 --output mixed.jsonl",
    ),
)
