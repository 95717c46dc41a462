"""Write rows of any recognised shape in another one, refusing what that shape cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from luthier.base.errors import DataError
from luthier.base.records import BadRow, Json, Record, Tagged, Task
from luthier.data.tasks import read_as
from luthier.prepare.config import VerbConfig
from luthier.prepare.frame import Frame
from luthier.prepare.parcel import REMOVED, Batch, Item, Parcel, Value
from luthier.prepare.report import Report, Table
from luthier.prepare.shapes import TASKS, split, used_columns, write
from luthier.prepare.shapes.parts import CannotHold
from luthier.prepare.verb import Job, Outcome, Verb

Shape = Literal[
    "messages",
    "sharegpt",
    "alpaca",
    "query-response",
    "prompt-completion",
    "text",
    "preference",
    "openai-preference",
    "kto",
    "classification",
    "tagging",
    "retrieval",
    "sentence-pair",
    "prompt",
]


class ConvertConfig(VerbConfig):
    """The shape that is wanted, and what may get lost on the way."""

    to: Shape = "messages"
    """Shape of the rows written."""
    lossy: bool = False
    """Write rows although the shape has no place for all they say (a weight, a tool call, the rejected side ...); what
    was lost is counted. Unset: such rows are left out, and named."""
    keep_columns: bool = True
    """Carry columns along that belong to no shape, such as ids, sources and dates."""


@dataclass(frozen=True)
class _Convert:
    """Writes each row in the shape wanted."""

    config: ConvertConfig
    strict: bool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            try:
                self._one(item, parcel)
            except BadRow as error:
                self._refuse(item, parcel, error.fault.code, error.fault.message)
            except CannotHold as error:
                self._refuse(item, parcel, "cannot_hold", str(error))
        return parcel

    def _one(self, item: Item, parcel: Parcel) -> None:
        losses: list[str] = []
        rows = self._rows(item, losses)
        if self.config.keep_columns:
            used = set(used_columns(item.value))
            extra = {name: value for name, value in item.value.items() if name not in used}
            rows = [{**row, **{name: value for name, value in extra.items() if name not in row}} for row in rows]
        if losses and not self.config.lossy:
            what = ", ".join(dict.fromkeys(losses))
            self._refuse(item, parcel, "would_lose", f"{self.config.to} has no place for: {what}")
            return
        for name in dict.fromkeys(losses):
            parcel.tally.count(f"lost: {name}")
            parcel.tally.example(f"lost: {name}", item.where, row=item.json().decode())
        for row in rows:
            parcel.keep(item, row)

    def _rows(self, item: Item, losses: list[str]) -> list[Value]:
        """The row, read as what it evidently is and written in the shape; or else read as what the shape is for."""
        task: Task | None = TASKS.get(self.config.to)
        try:
            record = read_as(item.value, item.where, [])
        except BadRow as error:
            if task is None or error.fault.code not in ("wrong_task", "unknown_shape"):
                raise
            return self._written(read_as(item.value, item.where, [], task), losses)
        try:
            return self._written(record, losses)
        except CannotHold:
            other: Record | None = None
            if task is not None and not isinstance(record, Tagged):  # tags look like the labels of a text
                with suppress(BadRow):
                    other = read_as(item.value, item.where, [], task)
            if other is None:
                raise
            losses.clear()
            return self._written(other, losses)

    def _written(self, record: Record, losses: list[str]) -> list[Value]:
        return [write(one, self.config.to, losses) for one in split(record, self.config.to, losses)]

    def _refuse(self, item: Item, parcel: Parcel, code: str, why: str) -> None:
        if self.strict:
            fix = "Leave such rows out with --bad_rows fix, or write them all the same with --lossy"
            raise DataError(why, where=str(item.where), code=code, fix=fix)
        parcel.drop(item, code, why=why)


def convert(rows: Frame, config: ConvertConfig, job: Job) -> Outcome:
    """Write rows in another shape.

    Raises:
        DataError: no row at all can be written; under the policy `strict`, the first one that cannot.
    """
    report = Report()

    def stream() -> Iterator[Parcel]:
        written = refusals = 0
        refused: dict[str, Json] | None = None
        reasons: dict[str, dict[str, Json]] = {}
        for parcel in rows.scan(_Convert(config, job.read.bad_rows == "strict"), f"Converting to {config.to}"):
            written += parcel.written.get("", 0)
            refusals += parcel.written.get(REMOVED, 0)
            _add_reasons(reasons, parcel)
            refused = refused or next((found[0] for found in parcel.tally.examples.values() if found), None)
            yield parcel
        if not written and refused is not None:
            where = f"{refused['file']}:{refused['line']}"
            fix = "--lossy writes what can be written" if "place for" in str(refused.get("why")) else None
            what = f"no row can be written as {config.to}; the first one: {refused.get('why')}"
            raise DataError(what, where=where, fix=fix, code="cannot_hold")
        report.summary["refused"] = refusals
        if reasons:
            report.tables.append(Table("Refused", list(reasons.values())))
            report.notes.append("--removed FILE.jsonl keeps the rows that were refused.")
        if "would_lose" in reasons:
            report.notes.append("--lossy true writes those that would lose something, without it.")

    return Outcome(report, stream())


def _add_reasons(reasons: dict[str, dict[str, Json]], parcel: Parcel) -> None:
    """Count why rows were refused, each reason with its first row."""
    for code, rows in parcel.tally.counts.items():
        if code.startswith("lost: "):
            continue
        found = reasons.get(code)
        if found is None:
            first = parcel.tally.examples[code][0]
            place = f"{first['file']}:{first['line']}"
            found = reasons[code] = {"reason": code, "rows": 0, "first": place, "why": first.get("why")}
        found["rows"] = int(str(found["rows"])) + rows


VERB = Verb(
    name="convert",
    config=ConvertConfig,
    run=convert,
    flows=True,
    about="Write rows of any recognised shape in another one, refusing what that shape cannot hold.",
    examples=(
        "luthier data convert alpaca.json --to messages --output chats.jsonl",
        "luthier data convert dpo.jsonl --to openai-preference --output preferences.jsonl",
        'luthier data convert tickets.csv --columns \'{"body": "text", "queue": "label"}\' --to classification '
        "--output labelled.jsonl",
    ),
    sample={"to": "sharegpt", "lossy": True},
)
