"""What several people said of the same rows: their agreement, as tables, and one answer of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.prepare.frame import Frame
from luthier.prepare.parcel import Batch, Item, Parcel, packed
from luthier.prepare.report import Report, Table
from luthier.prepare.studio_json import comparable, is_task, said_of
from luthier.prepare.view import column
from luthier.score.agreement import (
    Level,
    Ratings,
    alpha_by_class,
    by_annotator,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)

Unsure = Literal["keep", "drop"]
Resolve = Literal["majority", "first", "all"]


@dataclass(frozen=True)
class Annotated:
    """What the annotators of each row said, as lines of [control, [[annotator, answer], ...]]."""

    columns: tuple[str, ...]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            if self.columns:
                answers = [[name, column(item.value, name)] for name in self.columns]
                rated: dict[str, Any] = {"": [answer for answer in answers if answer[1] not in (None, "")]}
            else:
                rated = {}
                for said in said_of(item.value) if is_task(item.value) else ():
                    for name, answer in said.values.items():
                        rated.setdefault(name, []).append([said.annotator, comparable(answer)])
            parcel.keep_line(item.file, item.line, packed(rated), "said")
        return parcel


def ratings_of(rows: Frame, columns: tuple[str, ...]) -> list[tuple[str, Ratings, list[str]]]:
    """For each control the ratings of those items that somebody judged, and the annotators."""
    items: dict[str, list[dict[str, Any]]] = {}
    for parcel in rows.scan(Annotated(columns), "Reading answers"):
        for said in parcel.values("said"):
            for name, answers in said.items():
                items.setdefault(name, []).append({who: comparable(answer) for who, answer in answers})
    found: list[tuple[str, Ratings, list[str]]] = []
    for name, rated in sorted(items.items()):
        people = list(columns) or sorted({who for row in rated for who in row})
        found.append((name, Ratings.of([[row.get(who) for who in people] for row in rated]), people))
    return found


def describe(report: Report, name: str, ratings: Ratings, people: Sequence[str], level: Level) -> None:
    """Tables of agreement over all, by class and by annotator."""
    if len(people) < 2 or len(ratings.classes) < 2:
        return
    title = f"Agreement{f': {name}' if name else ''}"
    try:
        alpha = krippendorff_alpha(ratings, level)
    except ValueError as error:
        raise ConfigError(str(error), where="--level", fix="Use nominal or ordinal") from error
    whole: dict[str, Json] = {"items": len(ratings.codes_NA), "annotators": len(people)}
    whole[f"Krippendorff's alpha ({level})"] = _shown(alpha)
    if len(people) == 2:
        whole["Cohen's kappa"] = _shown(
            cohen_kappa(ratings.codes_NA[:, 0], ratings.codes_NA[:, 1], len(ratings.classes))
        )
    full = (ratings.codes_NA >= 0).all(axis=1)
    if full.any():
        whole["Fleiss' kappa (items that all judged)"] = _shown(fleiss_kappa(ratings.counts_NK[full]))
    report.tables.append(Table(title, [whole]))
    report.summary["alpha" if not name else f"alpha of {name}"] = _shown(alpha)
    if len(ratings.classes) <= 100:
        counts = ratings.counts_NK.sum(axis=0).tolist()
        by_class = zip(ratings.classes, counts, alpha_by_class(ratings).tolist(), strict=True)
        shown = [{"class": str(kind), "answers": n, "alpha": _shown(value)} for kind, n, value in by_class]
        report.tables.append(Table(f"{title} by class", shown))
    found = by_annotator(ratings, level)
    report.tables.append(
        Table(
            f"{title} by annotator",
            [
                {
                    "annotator": who,
                    "answers": one.answers,
                    "kappa with others": _shown(one.kappa),
                    "as most others": _shown(one.with_majority),
                    "alpha without": _shown(one.alpha_without),
                }
                for who, one in zip(people, found, strict=True)
            ],
        )
    )
    if alpha < 0.667:
        what = f"alpha {alpha:.3f} is below 0.667, under which Krippendorff (2004) draws no conclusions"
        report.notes.append(f"{what}: sharpen the guideline before labelling more")


def _shown(number: float) -> float | None:
    return None if math.isnan(number) else round(number, 4)


@dataclass(frozen=True)
class Join:
    """Writes the favourite of several columns into one."""

    label: str
    columns: tuple[str, ...]
    resolve: Resolve
    unsure: Unsure

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        shares = batch.attached["share"].tolist()
        for item, place, share in zip(batch.items, batch.attached["place"].tolist(), shares, strict=True):
            given = [column(item.value, name) for name in self.columns]
            known = [answer for answer in given if answer not in (None, "")]
            if self.resolve == "all":
                for answer in known:
                    parcel.keep(item, {**item.value, self.label: answer})
                continue
            first = self.resolve == "first" and bool(known)
            if place < 0 and not first:
                unsure(parcel, item, self.unsure, "no_majority" if known else "nothing_said")
                continue
            answer = known[0] if first else given[place]
            parcel.keep(item, {**item.value, self.label: answer, "agreement": round(share, 4)})
        return parcel


def unsure(parcel: Parcel, item: Item, what: Unsure, reason: str) -> None:
    if what == "drop":
        parcel.drop(item, reason)
    else:
        parcel.tally.count(reason)
        parcel.keep(item)
