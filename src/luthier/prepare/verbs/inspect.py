"""Look at a data set: what it holds, what is wrong with it, and how much of it a task usually wants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from luthier.base.errors import DataError, ModelError
from luthier.base.records import Json
from luthier.data.encoding import COMPRESSED, detect
from luthier.data.sources import files_of, parse_spec
from luthier.data.textfile import SUFFIXES, kind_of
from luthier.model.config import ModelConfig
from luthier.model.folder import model_folder
from luthier.prepare import looked
from luthier.prepare.census import SEPARATOR, USES, Census, Measure, evenly
from luthier.prepare.config import VerbConfig
from luthier.prepare.distribution import spread
from luthier.prepare.frame import Frame, Measured
from luthier.prepare.groups import distinct
from luthier.prepare.labels import count_labels
from luthier.prepare.report import Report, Table
from luthier.prepare.spill import Spill, spills
from luthier.prepare.torn import ENDS, ends_of
from luthier.prepare.verb import Job, Outcome, Verb

_LABELS = ("label", "labels", "category", "class", "sentiment", "intent", "department")
_MOST_LABELS = 500
_HELD = 16 * 2**20
"""Bytes of each column of lengths that stay in memory."""


class InspectConfig(VerbConfig):
    """What to look for."""

    label: str | None = None
    """Column with the classes. Unset: label, category and the like, if there is one."""
    tokenizer: str = "nano"
    """Model folder or hub id whose tokenizer counts the tokens. For the model you will train, name that one."""
    token_rows: int = Field(default=5000, ge=1)
    """Rows whose tokens are counted, evenly over the set; the others are estimated by their characters."""


def inspect(rows: Frame, config: InspectConfig, job: Job) -> Outcome:
    """Look at rows: two passes, and one more for labels.

    Raises:
        DataError: code `no_label` when the label column that was named holds no classes.
        ModelError: the tokenizer cannot be found.
    """
    tokenizer = _tokenizer(config.tokenizer, job)
    # What there is one of for every row goes to files and is looked at block by block: rows may be very many.
    keys, han = Spill(job.scratch / "keys", np.uint64, 2), Spill(job.scratch / "han", bool)
    lengths = {name: Spill(job.scratch / name, np.int32, limit=_HELD) for name in ("characters", *USES)}
    first = rows.measure(Census(), "Looking", spilled={"key": keys, "han": han, **lengths})
    counts = _by_name(first)
    total = len(rows)
    duplicates = total - distinct(keys)
    keys.close()
    numbers = tuple(name for name in counts["seen"] if counts["number"].get(name, 0) * 2 > counts["seen"][name])
    values, tokens = spills(job.scratch, numbers, np.float64), Spill(job.scratch / "tokens", np.int32)
    spilled = {f"number {name}": spill for name, spill in values.items()} | {"tokens": tokens}
    some = (total, min(total, config.token_rows))
    rows.measure(Measure(numbers, tokenizer, some), "Measuring", spilled=spilled)
    labels = _labels(rows, config.label, counts["seen"])

    report = Report()
    report.tables += [
        _files(rows, job),
        looked.columns(counts, total),
        looked.shares("Shapes", "shape", counts["shape"], total),
    ]
    sampled = evenly(*some, 0, total)
    told = _tokens(counts["characters"], lengths["characters"].select(sampled), han.select(sampled), tokens.all())
    report.summary |= {"duplicates": duplicates, "tokens": told, "languages": len(counts["language"])}
    columns = {"characters": lengths["characters"], **values}
    spreads = {name: spread(held) for name, held in columns.items()}
    looked.add_lengths(report, lengths, tokens, spreads["characters"])
    languages = looked.shares("Languages", "language", counts["language"], total)
    report.tables.append(languages)
    report.charts.append(looked.chart("Languages", counts["language"], at_most=10))
    if labels is not None:
        looked.add_balance(report, *labels)
    looked.add_outliers(report, columns, spreads)
    for name, n in counts["trouble"].items():
        report.tally.counts[name] = n
    report.tally.examples |= first.tally.examples
    looked.add_notes(report, counts, duplicates, total, config.tokenizer, tokens.rows)
    looked.add_advice(report, counts, total, told, labels)
    for spill in (han, tokens, *lengths.values(), *values.values()):
        spill.close()
    return Outcome(report)


def _tokenizer(name: str, job: Job) -> str:
    folder = model_folder(ModelConfig(path=name, hub=job.read.hub))
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError("no tokenizer.json here", where=str(folder), code="no_tokenizer")
    return str(path)


def _by_name(found: Measured) -> dict[str, dict[str, int]]:
    """Counts by what was counted, the most frequent first."""
    kinds = ("shape", "task", "language", "seen", "missing", "number", "text", "list", "object", "truth", "trouble")
    counts: dict[str, dict[str, int]] = {kind: {} for kind in (*kinds, "characters", "tag", "torn")}
    for name, n in sorted(found.tally.counts.items(), key=lambda entry: -entry[1]):
        kind, _, which = name.partition(SEPARATOR)
        counts[kind][which] = n
    ends = ends_of(counts["tag"])
    broken = {how: found.tally.examples.pop(f"torn {how}", []) for how in ENDS}
    if ends is not None and counts["torn"].get(ends):
        counts["trouble"]["torn_tags"] = counts["torn"][ends]
        found.tally.examples["torn_tags"] = broken[ends]
    return counts


def _files(rows: Frame, job: Job) -> Table:
    found: list[dict[str, Json]] = []
    for source in rows.sources:
        spec = parse_spec(source.name, job.read.hub)
        for path in files_of(spec) if spec.kind == "local" else ():
            text = kind_of(path) in SUFFIXES
            found.append(
                {
                    "file": str(path),
                    "format": kind_of(path).removeprefix("."),
                    "bytes": path.stat().st_size,
                    "encoding": detect(path) if text else "",
                    "compressed": path.suffix.lower() in COMPRESSED,
                }
            )
    return Table("Files", found)


def _tokens(
    characters: Mapping[str, int], counted: NDArray[np.int32], han: NDArray[np.bool_], tokens_of: NDArray[np.int32]
) -> int:
    """Tokens of all rows: those that were counted, and the others by their characters and whether they are Chinese.

    Args:
        characters: of all rows, Chinese ones and others.
        counted: characters of the rows whose tokens were counted, whether these are Chinese, and their tokens; [some].
    """
    total = 0.0
    for chinese in (False, True):
        of_kind = han == chinese
        tokens, seen = int(tokens_of[of_kind].sum()), int(counted[of_kind].sum())
        rest = characters.get("zh" if chinese else "other", 0) - seen
        # with nothing counted of this kind: 0.25 tokens a character is what English takes, 1 what Chinese takes at most
        total += tokens + rest * (tokens / seen if seen else (1.0 if chinese else 0.25))
    return round(total)


def _labels(rows: Frame, wanted: str | None, seen: Mapping[str, int]) -> tuple[str, dict[str, int]] | None:
    """The column with the classes, and the rows of each class."""
    if wanted is not None:
        return wanted, count_labels(rows, wanted)
    alone: tuple[str, dict[str, int]] | None = None  # a label that says the same of every row is worth a warning
    for name in seen:
        if name.lower() in _LABELS:
            try:
                found = count_labels(rows, name, needed=False)
            except DataError:  # too many values for classes, and nobody said that it holds any
                continue
            if 1 < len(found) <= _MOST_LABELS:
                return name, found
            if len(found) == 1 and name.lower() == "label":
                alone = name, found
    return alone


VERB = Verb(
    name="inspect",
    config=InspectConfig,
    run=inspect,
    about="Look at a data set: what it holds, what is wrong with it, and how much of it a task usually wants.",
    examples=(
        "luthier data inspect raw.csv",
        "luthier data inspect train.jsonl valid.jsonl --report look.json",
        "luthier data inspect train.jsonl --label category --tokenizer Qwen/Qwen2.5-0.5B",
    ),
    writes=False,
)
