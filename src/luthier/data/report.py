"""The data report: what was read, kept and dropped and why, what is trained, and whether a model can learn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import DataError
from luthier.base.sizes import share
from luthier.data.config import DataConfig
from luthier.data.encode import Facts, Rejected

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class SetReport:
    """One data set."""

    name: str
    use: Literal["train", "validation"]
    rows: int
    """Different rows read, after #N."""
    kept: int
    dropped: Mapping[str, int]
    """Rows by the reason they were left out."""
    repaired: Mapping[str, int]
    """Repairs by kind."""
    truncated: int
    """Rows that lost their end."""
    split: int
    """Rows cut into several samples."""
    samples: int
    """Different samples made of the kept rows."""
    used: int
    """Samples of one epoch: more than `samples` when #N asks for more rows than there are."""
    exact_duplicates: int
    """Kept rows that say the same as an earlier one."""
    near_duplicates: int
    """Further rows equal but for case, white space, punctuation and character width."""
    tokens: int
    trained_tokens: int
    lengths: Sequence[int]
    """Tokens of a sample: least, median, 90 %, 99 %, most."""
    stop_share: float
    """Share of the kept chats whose stop token is trained."""
    chats: int
    ignored_columns: Sequence[str]
    repeated: int = 0
    """Rows that #N asks for beyond those there are, which are given once more."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """All data sets of a run."""

    sets: Sequence[SetReport]
    overlap: int
    """Validation samples that also occur in the training sets."""
    max_length: int
    template_note: str | None = None
    sampled: bool = False
    """Whether only the beginning of each set was read, because the run streams them."""
    totals: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        return asdict(self)


def set_report(
    name: str,
    use: Literal["train", "validation"],
    facts: Facts,
    used: int,
    lengths: NDArray[np.int64],
    rows: NDArray[np.int64],
    names: NDArray[np.uint8],
    repeated: int = 0,
) -> SetReport:
    """The report of one set.

    Args:
        used: samples of one epoch.
        lengths, rows, names: of each group: tokens, row it came from, identity and normalised key ([groups, 32]).
        repeated: rows that #N asks for beyond those there are.
    """
    _, firsts = np.unique(rows, return_index=True)
    exact = _repeats(names[firsts, :16])
    near = _repeats(names[firsts, 16:]) - exact
    return SetReport(
        name=name,
        use=use,
        rows=facts.rows,
        kept=facts.kept,
        dropped=dict(facts.dropped),
        repaired=dict(facts.repaired),
        truncated=facts.truncated,
        split=facts.split,
        samples=len(lengths),
        used=used,
        exact_duplicates=exact,
        near_duplicates=near,
        tokens=int(lengths.sum()),
        trained_tokens=facts.trained,
        lengths=[int(np.quantile(lengths, q)) for q in QUANTILES] if len(lengths) else [],
        stop_share=facts.stopped / facts.kept if facts.kept else 0.0,
        chats=facts.chats,
        ignored_columns=list(facts.ignored),
        repeated=repeated,
    )


def _repeats(keys: NDArray[np.uint8]) -> int:
    return len(keys) - len(np.unique(np.ascontiguousarray(keys), axis=0)) if len(keys) else 0


def overlap(train: NDArray[np.uint8], validation: NDArray[np.uint8]) -> int:
    """How many of the validation groups' identity keys ([n, 32]) also occur in training."""
    if not len(train) or not len(validation):
        return 0
    seen = {key.tobytes() for key in train[:, :16]}
    return sum(key.tobytes() in seen for key in validation[:, :16])


def totals(sets: Sequence[SetReport], use: Literal["train", "validation"]) -> dict[str, Any]:
    """Sums over the sets of one use."""
    mine = [part for part in sets if part.use == use]
    tokens, trained = sum(part.tokens for part in mine), sum(part.trained_tokens for part in mine)
    return {
        "rows": sum(part.rows for part in mine),
        "kept": sum(part.kept for part in mine),
        "samples": sum(part.samples for part in mine),
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_share": trained / tokens if tokens else 0.0,
    }


def refuse(report: DataReport, config: DataConfig, rejected: Sequence[Rejected] = (), listed: str = "") -> None:
    """Refuse data that a model cannot learn from.

    Args:
        rejected: the rows left out; the first one is told.
        listed: where all of them can be read.

    Raises:
        DataError: saying which threshold was missed and what most likely caused it.
    """
    train = [part for part in report.sets if part.use == "train"]
    rows, kept = sum(part.rows for part in train), sum(part.kept for part in train)
    reasons = _reasons(train) + "".join(f"; first {_place(row)}: {row['message']}" for row in rejected[:1])
    see = f"All of them are in {listed}" if listed else None
    anyway = f"to train on the rest anyway, raise --max_rejected above {config.max_rejected:g}"
    if kept == 0:
        raise DataError(f"none of {rows} rows can be used: {reasons}", code="no_rows", fix=see)
    for part in report.sets:
        if part.use == "validation" and part.rows and not part.kept:
            raise DataError(
                f"none of the {part.rows} validation rows can be used: {_reasons([part])}",
                where=part.name,
                code="no_rows",
                fix=see,
            )
    if kept < config.min_rows:
        raise DataError(
            f"{kept} usable rows are fewer than min_rows {config.min_rows} ({reasons})", code="too_few_rows", fix=see
        )
    if (rows - kept) / rows > config.max_rejected:
        raise DataError(
            f"{rows - kept} of {rows} rows were rejected ({reasons})",
            code="too_many_rejected",
            fix=f"{see or 'Repair them'}; {anyway}",
        )
    if sum(part.trained_tokens for part in train) == 0:
        raise DataError("no token would be trained", code="nothing_to_train", fix="Look at it with luthier preview")
    chats = [part for part in train if part.chats and part.truncated < part.kept]
    if chats and not any(part.stop_share for part in chats):
        raise DataError(
            "no chat's stop token is trained, so the model would never learn to end its answers",
            code="no_stop_token",
            fix="Check the chat template with luthier preview",
        )
    if report.overlap and config.bad_rows == "strict":
        raise DataError(f"{report.overlap} validation samples also occur in the training data", code="overlap")


def _place(row: Rejected) -> str:
    return f"{row['file']}:{row['line']} {row['path']}".rstrip()


def _reasons(sets: Sequence[SetReport]) -> str:
    counts: dict[str, int] = {}
    for part in sets:
        for code, count in part.dropped.items():
            counts[code] = counts.get(code, 0) + count
    return ", ".join(f"{code} {count}" for code, count in sorted(counts.items(), key=lambda item: -item[1])) or "empty"


def table(report: DataReport) -> list[dict[str, Any]]:
    """One row for each set, for the terminal."""
    names = short_names([part.name for part in report.sets])
    return [
        {
            "set": names[part.name] + " (validation)" * (part.use == "validation"),
            "rows": f"{part.rows:,}" if part.kept == part.rows else f"{part.kept:,} of {part.rows:,}",
            "samples": part.used,
            "tokens": part.tokens,
            "trained": share(part.trained_tokens, part.tokens),
            "median / longest": f"{part.lengths[1]} / {part.lengths[-1]}" if part.lengths else "-",
            "stops": f"{part.stop_share:.0%}",
        }
        for part in report.sets
    ]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The end of each path, as short as still tells it from the others."""
    short: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        others = {other for other in names if other != name}
        tails = ("/".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        short[name] = next((tail for tail in tails if not any(_ends(other, tail) for other in others)), name)
    return short


def _ends(name: str, tail: str) -> bool:
    return f"/{name}".endswith(f"/{tail}")


def notes(report: DataReport) -> list[str]:
    """What a person should know before the first step, one sentence each."""
    lines: list[str] = [report.template_note] if report.template_note else []
    names = short_names([part.name for part in report.sets])
    for part in report.sets:
        name = names[part.name]
        if part.dropped:
            lines.append(f"{name}: {part.rows - part.kept} rows left out ({_reasons([part])}); see rejected.jsonl")
        if part.repaired:
            counts = ", ".join(f"{code} {count}" for code, count in part.repaired.items())
            lines.append(f"{name}: repaired {counts}")
        if part.truncated:
            lines.append(f"{name}: {part.truncated} rows cut at {report.max_length} tokens, their end is lost")
        if part.repeated:
            least, more = divmod(part.rows + part.repeated, part.rows)
            times = f"{least} or {least + 1}" if more else f"{least}"
            lines.append(f"{name}: there are {part.rows:,} rows, so each comes {times} times")
        if part.exact_duplicates or part.near_duplicates:
            lines.append(f"{name}: {part.exact_duplicates} exact and {part.near_duplicates} near duplicates kept")
        if part.ignored_columns:
            lines.append(f"{name}: columns without use: {', '.join(part.ignored_columns)}")
    if report.overlap:
        lines.append(f"{report.overlap} validation samples also occur in the training data")
    if report.sampled:
        lines.append("The sets are streamed: these numbers are of the rows at their beginning")
    return lines
