"""Remove rows that hold a piece of an evaluation set, found by n-grams in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Json
from luthier.prepare.config import VerbConfig
from luthier.prepare.frame import Frame
from luthier.prepare.groups import width
from luthier.prepare.ngrams import Grams, Index, index_grams
from luthier.prepare.parcel import Batch, Parcel, Placed
from luthier.prepare.report import Report, Table
from luthier.prepare.shingles import Sizes
from luthier.prepare.verb import Job, Outcome, Verb
from luthier.prepare.view import text_of


class DecontaminateConfig(VerbConfig):
    """What must not be in the training set, and what counts as being in it."""

    against: tuple[str, ...] = ()
    """The evaluation sets: questions with or without answers, in any shape; all of their text counts."""
    words: int = Field(default=13, ge=1, le=100)
    """Words in an n-gram of scripts with spaces; 13 is what GPT-3's authors used (Brown et al. 2020, appendix C)."""
    characters: int = Field(default=20, ge=1, le=200)
    """Characters in an n-gram of Chinese, Japanese and other texts without spaces."""
    shortest_words: int = Field(default=6, ge=1)
    """Evaluation texts of fewer words are not looked for; those shorter than an n-gram are looked for as a whole."""
    shortest_characters: int = Field(default=10, ge=1)
    """The same in characters, for texts without spaces."""
    min_matches: int = Field(default=1, ge=1)
    """N-grams in common from which a row is removed."""
    common: int | None = Field(default=None, ge=1)
    """N-grams in more training rows than this are taken for boilerplate and do not count. Unset: all count."""

    @model_validator(mode="after")
    def _has_sets(self) -> DecontaminateConfig:
        if self.shortest_words > self.words or self.shortest_characters > self.characters:
            raise ValueError("the shortest texts looked for cannot be longer than an n-gram")
        return self

    @property
    def grams(self) -> Grams:
        """How texts are cut."""
        return Grams(Sizes(self.words, self.characters), Sizes(self.shortest_words, self.shortest_characters))


@dataclass(frozen=True)
class _Index:
    """Work on the evaluation sets: their n-grams."""

    grams: Grams

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        owners, hashes, lengths = index_grams([text_of(item.value) for item in batch.items], self.grams)
        parcel.columns.update(owners=owners, hashes=hashes)
        for words, size in lengths:
            parcel.tally.count(f"{int(words)} {size}")
        return parcel


@dataclass(frozen=True)
class _Find:
    """Work on the training rows: which of the n-grams they hold."""

    index: Index

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        rows, grams = self.index.find([text_of(item.value) for item in batch.items])
        parcel.columns.update(rows=rows, grams=grams)
        return parcel


@dataclass(frozen=True)
class _Drop:
    """Lets rows through that hold too little of an evaluation set to matter."""

    files: tuple[str, ...]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        columns = (batch.attached[name].tolist() for name in ("keep", "matches", "file", "line"))
        for item, keep, matches, file, line in zip(batch.items, *columns, strict=True):
            if keep:
                parcel.keep(item)
            else:
                parcel.drop(item, "contaminated", holds=f"{self.files[file]}:{line}", ngrams=matches)
        return parcel


def decontaminate(rows: Frame, config: DecontaminateConfig, job: Job) -> Outcome:
    """Remove rows with n-grams of the evaluation sets.

    Raises:
        ConfigError: no evaluation set was named.
        DataError: code `contaminated` under the policy `strict`.
    """
    index, tests = _indexed(config, job)
    pieces: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    start = 0
    for parcel in rows.scan(_Find(index), "Looking for n-grams"):
        assert parcel.read is not None, "the frame fills it in"
        pieces.append((parcel.columns["rows"] + start, parcel.columns["grams"]))
        start += parcel.read.rows
    row = np.concatenate([piece[0] for piece in pieces])
    gram = np.concatenate([piece[1] for piece in pieces])
    spread = np.bincount(gram, minlength=len(index))
    if config.common is not None:
        counts = spread[gram] <= config.common
        row, gram = row[counts], gram[counts]
    matches = np.bincount(row, minlength=len(rows)).astype(np.int32)
    keep = matches < config.min_matches
    owners = index.owners()[gram] if len(gram) else np.empty(0, np.int64)
    held = np.zeros(len(rows), width(len(tests)))
    held[row[::-1]] = owners[::-1]  # the first n-gram found decides what is named
    places = tests.places(np.arange(len(tests)))
    lost = int((~keep).sum())
    if lost and job.read.bad_rows == "strict":
        at = int(np.argmin(keep))
        mine, theirs = rows.places(np.array([at])), int(held[at])
        what = f"{lost:,} rows hold text of the evaluation sets; the first holds some of {_name(places, theirs)}"
        raise DataError(what, where=_name(mine, 0), code="contaminated", fix="Remove them with --bad_rows fix")
    found = np.unique(owners[~keep[row]])
    report = Report(
        summary={
            "contaminated": lost,
            "evaluation rows": len(tests),
            "evaluation rows found": len(found),
            "n-grams looked for": len(index),
        }
    )
    report.tables.append(Table("Found of each evaluation set", _by_file(places, found)))
    if config.common is not None:
        report.summary["n-grams taken for boilerplate"] = int((spread > config.common).sum())
    attached = {"keep": keep, "matches": matches, "file": places.file[held], "line": places.line[held]}
    return Outcome(report, rows.scan(_Drop(places.files), "Writing", attached))


def _indexed(config: DecontaminateConfig, job: Job) -> tuple[Index, Frame]:
    """The n-grams of the evaluation sets, and the sets."""
    if not config.against:
        fix = "Name the evaluation sets with --against"
        raise ConfigError("there is nothing to look for", where="--against", fix=fix, code="bad_value")
    tests = job.open(config.against)
    owners: list[NDArray[np.int64]] = []
    hashes: list[NDArray[np.uint64]] = []
    lengths: set[tuple[bool, int]] = set()
    start = 0
    for parcel in tests.scan(_Index(config.grams), "Reading evaluation sets"):
        assert parcel.read is not None, "the frame fills it in"
        owners.append(parcel.columns["owners"] + start)
        hashes.append(parcel.columns["hashes"])
        lengths |= {(name[0] == "1", int(name[2:])) for name in parcel.tally.counts}
        start += parcel.read.rows
    return Index.write(job.scratch, np.concatenate(owners), np.concatenate(hashes), config.grams, lengths), tests


def _name(places: Placed, row: int) -> str:
    return f"{places.files[places.file[row]]}:{places.line[row]}"


def _by_file(places: Placed, found: NDArray[np.int64]) -> list[dict[str, Json]]:
    """Rows of each evaluation file, and how many of them the training rows hold a piece of."""
    total = np.bincount(places.file, minlength=len(places.files)).tolist()
    held = np.bincount(places.file[found], minlength=len(places.files)).tolist()
    names = zip(places.files, total, held, strict=True)
    return [{"file": name, "rows": rows, "found": some} for name, rows, some in names]


VERB = Verb(
    name="decontaminate",
    config=DecontaminateConfig,
    run=decontaminate,
    flows=True,
    about="Remove rows that hold a piece of an evaluation set, found by n-grams in common.",
    examples=(
        "luthier data decontaminate train.jsonl --against gsm8k/test.jsonl mmlu/test --output clean.jsonl",
        "luthier data decontaminate train.jsonl --against test.jsonl --words 8 --min_matches 2 --report found.json",
    ),
    reads=("against",),
    sample={"against": ["{other}"]},
)
