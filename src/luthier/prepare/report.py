"""What a verb did, for programs (JSON) and for people (a table on the terminal, and a page: see `page.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson

from luthier.base.records import Json
from luthier.prepare.frame import Facts
from luthier.prepare.parcel import Tally

MOST_LISTED = 50
"""Rows of a table that the page shows; the JSON has all of them."""


@dataclass(frozen=True)
class Table:
    """Rows under the keys of the first one."""

    title: str
    rows: Sequence[Mapping[str, Json]]


@dataclass(frozen=True)
class Chart:
    """One series of numbers.  bars: a value for each label.  line: a value at each x."""

    title: str
    labels: Sequence[str | float]
    values: Sequence[float]
    kind: Literal["bars", "line"] = "bars"
    x: str = ""
    y: str = "rows"


@dataclass
class Report:
    """What a verb did.  The framework adds what was read, rejected and written; see `Finished`.

    No times and no machine names: the same work gives the same report.
    """

    summary: dict[str, Json] = field(default_factory=dict[str, Json])
    """The few numbers that matter, by name."""
    tally: Tally = field(default_factory=Tally)
    """Everything that was counted, with examples; tallies of the parcels written are added by themselves."""
    tables: list[Table] = field(default_factory=list[Table])
    charts: list[Chart] = field(default_factory=list[Chart])
    notes: list[str] = field(default_factory=list[str])
    """Sentences for the reader: what is unusual, what to do about it."""


@dataclass(frozen=True)
class Finished:
    """A verb's report with everything around it."""

    verb: str
    version: str
    inputs: Sequence[str]
    settings: Mapping[str, Json]
    seed: int
    facts: Facts
    written: Mapping[str, int]
    """Rows written, by the name of the output ("" when there is one)."""
    report: Report

    def as_json(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        facts, report = self.facts, self.report
        rows = {
            "read": facts.rows + sum(facts.rejected.values()),
            "rejected": sum(facts.rejected.values()),
            "used": facts.rows,
            "written": sum(self.written.values()),
        }
        return {
            "verb": self.verb,
            "luthier": self.version,
            "inputs": list(self.inputs),
            "settings": dict(self.settings),
            "seed": self.seed,
            "rows": rows,
            "summary": report.summary,
            "counts": dict(report.tally.counts),
            "examples": {name: list(rows) for name, rows in report.tally.examples.items()},
            "rejected": {"counts": dict(facts.rejected), "examples": list(facts.examples)},
            "faulty": {"counts": dict(facts.faulty.counts), "examples": dict(facts.faulty.examples)},
            "tables": [{"title": table.title, "rows": [dict(row) for row in table.rows]} for table in report.tables],
            "charts": [asdict(chart) for chart in report.charts],
            "notes": list(report.notes),
            "parts": dict(self.written),
        }

    @classmethod
    def from_json(cls, shown: Mapping[str, Any]) -> Finished:
        """The report that `as_json` gave."""
        tally = Tally(shown["counts"], shown["examples"])
        faulty = Tally(shown["faulty"]["counts"], shown["faulty"]["examples"])
        facts = Facts(shown["rows"]["used"], shown["rejected"]["counts"], faulty, shown["rejected"]["examples"])
        tables = [Table(table["title"], table["rows"]) for table in shown["tables"]]
        charts = [Chart(**chart) for chart in shown["charts"]]
        report = Report(shown["summary"], tally, tables, charts, shown["notes"])
        return cls(
            shown["verb"],
            shown["luthier"],
            shown["inputs"],
            shown["settings"],
            shown["seed"],
            facts,
            shown["parts"],
            report,
        )

    def headline(self) -> dict[str, Json]:
        """The numbers a person sees first."""
        facts = self.facts
        head: dict[str, Json] = {"rows read": facts.rows + sum(facts.rejected.values())}
        if facts.rejected:
            head["rejected"] = sum(facts.rejected.values())
        head.update(self.report.summary)
        parts = {f"written to {name}" if name else "written": rows for name, rows in self.written.items()}
        return {**head, **parts}


def to_bytes(report: Mapping[str, Any]) -> bytes:
    """A report as an indented JSON file."""
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
