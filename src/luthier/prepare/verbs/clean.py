"""Repair texts, mask personal data, and leave out rows that rules of quality, length or language refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.prepare.cleaning import CHANGED, CleanConfig, Cleaning, page_rules, rewriting
from luthier.prepare.frame import Frame
from luthier.prepare.parcel import Parcel
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.torn import survey
from luthier.prepare.values import CHARACTERS, Bounds, fillers, usual_values
from luthier.prepare.verb import Job, Outcome, Verb

_OTHERS = {"classical": "texts rewritten", "filled": "values filled", "clipped": "values clipped"}


def _bounds(rows: Frame, config: CleanConfig, scratch: Path) -> Bounds:
    """What single values are held against.

    Raises:
        ConfigError: a gap cannot be filled, or a text not clipped.
    """
    clip = config.outlier_action == "clip"
    if clip and CHARACTERS in config.outliers:
        what = "the length of a text can be a reason to drop a row, but texts are not clipped"
        raise ConfigError(what, where="outliers", fix="Use --outlier_action drop")
    if config.missing == "fill" and not config.missing_columns:
        raise ConfigError("no column was named to fill", where="missing", fix="Name them with --missing_columns")
    filled = config.missing_columns if config.missing == "fill" else ()
    rule, factor = config.outlier_rule, config.outlier_factor
    return Bounds(
        usual_values(rows, config.outliers, rule, factor, scratch) if config.outliers else (),
        clip,
        fillers(rows, filled, config.fill_with, scratch) if filled else (),
        survey(rows) if config.torn_tags == "drop" else None,
    )


def clean(rows: Frame, config: CleanConfig, job: Job) -> Outcome:
    """Clean rows; see `CleanConfig` for what is done by default and on request.

    Raises:
        ConfigError, MissingExtra: settings that cannot work.
    """
    report = Report()
    return Outcome(report, _told(rows, Cleaning(config, _bounds(rows, config, job.scratch)), report))


def _told(rows: Frame, work: Cleaning, report: Report) -> Iterator[Parcel]:
    """The cleaned rows, and behind them what was done."""
    counts: dict[str, int] = {}
    for parcel in rows.scan(work, "Cleaning"):
        for name, n in parcel.tally.counts.items():
            counts[name] = counts.get(name, 0) + n
        parcel.tally.counts.pop(CHANGED, None)
        yield parcel
    rules = rewriting(work.config)
    asked = {
        **dict.fromkeys((repair.name for repair in rules.repairs), "texts repaired"),
        **dict.fromkeys((rule.name for rule in rules.lines), "texts cut"),
        **{f"masked_{kind}": "places masked" for kind in rules.kinds},
        **dict.fromkeys(page_rules(work.config), "rows removed"),
        **({"torn_tags": "rows removed"} if work.config.torn_tags == "drop" else {}),
    }
    found = {name: _OTHERS.get(name, "rows removed") for name in counts if name not in asked and name != CHANGED}
    table: list[dict[str, Json]] = [
        {"rule": name, "what": what, "times": counts.get(name, 0)} for name, what in {**asked, **found}.items()
    ]
    report.summary["changed"] = counts.get(CHANGED, 0)
    report.summary["removed"] = sum(cast(int, row["times"]) for row in table if row["what"] == "rows removed")
    report.tables.append(Table("Rules", table))
    times = {str(row["rule"]): cast(int, row["times"]) for row in table if row["times"]}
    busy = sorted(times, key=lambda name: -times[name])
    report.charts.append(Chart("What the rules did", busy, [times[name] for name in busy], x="rule", y="times"))
    if work.bounds.outliers:
        usual = [{"column": name, "low": low, "high": high} for name, (low, high) in work.bounds.outliers]
        report.tables.append(Table("Usual values", usual))


VERB = Verb(
    name="clean",
    config=CleanConfig,
    run=clean,
    flows=True,
    about="Repair texts, mask personal data, and leave out rows that rules of quality, length or language refuse.",
    examples=(
        "luthier data clean raw.csv --output clean.jsonl --report clean.json",
        "luthier data clean chats.jsonl --mask all --languages zh en --output clean.jsonl",
        "luthier data clean pages.jsonl --html true --quality c4 gopher --output prose.jsonl",
        "luthier data clean zh.jsonl --chinese simplified --width chinese --output zh.clean.jsonl",
        "luthier data clean table.csv --missing drop --outliers age characters --output usual.jsonl",
    ),
    reads=("bad_words", "stop_word_file"),
)
