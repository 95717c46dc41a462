"""Rows to be labelled, and labels into rows: the passes of `luthier data label`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import orjson

from luthier.base.records import Json
from luthier.prepare.annotators import Resolve, Unsure, unsure
from luthier.prepare.parcel import Batch, Parcel, packed
from luthier.prepare.studio_json import Form, Said, comparable, is_task, said_of
from luthier.prepare.verb import ASKED
from luthier.prepare.view import column, text_of


@dataclass(frozen=True)
class WriteTasks:
    """Writes each row as a task."""

    form: Form
    label: str
    column: str | None

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            value = item.value if self.column else {**item.value, "text": text_of(item.value)}
            parcel.keep(item, self.form.task(value, column(item.value, self.label)))
        return parcel


@dataclass(frozen=True)
class Seen:
    """Counts the labels that are text."""

    name: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            found = column(item.value, self.name)
            if isinstance(found, str) and found:
                parcel.tally.count(found)
        return parcel


@dataclass(frozen=True)
class Import:
    """Writes each task as a row."""

    resolve: Resolve

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            if not is_task(item.value):
                parcel.drop(item, "no_task")
                continue
            said = said_of(item.value)
            for kind in (kind for one in said for kind in one.ignored):
                parcel.tally.count(f"ignored: {kind}")
            if not said:
                parcel.drop(item, "not_annotated")
                continue
            data = cast(dict[str, Json], item.value["data"])
            chosen = said if self.resolve == "all" else [_resolved(said, self.resolve)]
            for one in chosen:
                if one is None or not one.values:
                    parcel.drop(item, "no_majority" if one is None else "nothing_said")
                    continue
                row: dict[str, Json] = {**data, **one.values, **_preferred(data, one)}
                parcel.keep(item, {**row, "annotator": one.annotator} if self.resolve == "all" else row)
        return parcel


def _resolved(said: Sequence[Said], how: Literal["majority", "first"]) -> Said | None:
    """One annotation of several: a ground truth wins; else the first, or for each control what most said."""
    truth = next((one for one in said if one.ground_truth), None)
    if truth is not None or how == "first" or len(said) == 1:
        return truth or said[0]
    made = Said("majority")
    for name in dict.fromkeys(name for one in said for name in one.values):
        given = [one.values[name] for one in said if name in one.values]
        keys = [comparable(answer) for answer in given]
        most = max(keys.count(key) for key in keys)
        best = dict.fromkeys(key for key in keys if keys.count(key) == most)
        if len(best) == 1:
            made.values[name] = given[keys.index(next(iter(best)))]
    return made if made.values else None


def _preferred(data: Mapping[str, Json], said: Said) -> dict[str, Json]:
    """chosen and rejected of a task that compared two texts, where it is clear which ones."""
    side = next((answer for answer in said.values.values() if answer in ("left", "right")), None)
    texts = [name for name, value in data.items() if isinstance(value, str) and name not in ("prompt", "instruction")]
    if side is None or len(texts) != 2 or "chosen" in data:
        return {}
    left, right = (data[name] for name in texts)
    return {"chosen": left, "rejected": right} if side == "left" else {"chosen": right, "rejected": left}


@dataclass(frozen=True)
class Unlabelled:
    """The text of each row that is to be labelled, as a line; null for the others."""

    label: str
    column: str | None
    relabel: bool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            has = column(item.value, self.label) not in (None, "", []) and not self.relabel
            text = column(item.value, self.column) if self.column else text_of(item.value)
            shown = text if isinstance(text, str) and text.strip() and not has else None
            parcel.keep_line(item.file, item.line, packed([shown, has]), ASKED)
        return parcel


@dataclass(frozen=True)
class WriteAnswers:
    """Writes answers into rows: the attached JSON is {column: value}, a reason for none, or null."""

    unsure: Unsure

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item, answer in zip(batch.items, batch.attached["answer"], strict=True):
            found = orjson.loads(answer)
            if found is None:
                parcel.keep(item)
            elif isinstance(found, str):
                unsure(parcel, item, self.unsure, found)
            else:
                parcel.tally.count("labelled")
                parcel.keep(item, {**item.value, **found})
        return parcel
