"""Find rows that are there more than once, identical or nearly so, and keep the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from luthier.base.errors import DataError
from luthier.base.records import Json
from luthier.prepare.config import VerbConfig
from luthier.prepare.frame import Frame
from luthier.prepare.groups import AT_ONCE, Rows, first_of_equals, leading, stand_alone
from luthier.prepare.identity import RowKeys
from luthier.prepare.minhash import bands_for
from luthier.prepare.near import Alike, Likeness, alike
from luthier.prepare.parcel import Batch, Parcel
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.shingles import Sizes
from luthier.prepare.spill import Spill
from luthier.prepare.verb import Job, Outcome, Verb

_LISTED = 50  # groups that the report lists


class DedupConfig(VerbConfig):
    """Duplicates: which rows count as the same, and which sets they are looked for in."""

    exact: bool = False
    """Remove rows that are identical as a whole; so it is also when neither exact nor near is asked for."""
    near: bool = False
    """Remove rows whose text is nearly the same: shingles in common, found by MinHash and then counted."""
    key: tuple[str, ...] = ()
    """Compare these columns only (dotted paths reach deeper). Unset: whole rows, or with near all of their text."""
    against: tuple[str, ...] = ()
    """Further data sets, say a validation set: rows that are also there are removed, and nothing of them is written."""
    threshold: float = Field(default=0.8, gt=0.0, le=1.0)
    """Rows are nearly the same from this Jaccard similarity of their shingles on."""
    word_shingle: int = Field(default=3, ge=1, le=50)
    """Words in a shingle of texts in scripts with spaces."""
    character_shingle: int = Field(default=5, ge=1, le=50)
    """Characters in a shingle of Chinese, Japanese and other texts without spaces."""
    permutations: int = Field(default=128, ge=16, le=1024)
    """Most hash functions a text is summarised with; more find more."""


@dataclass(frozen=True)
class _Drop:
    """Lets first rows through.  `file` and `line` say which row the others repeat."""

    files: tuple[str, ...]
    near: bool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        at = 0
        dropped = np.flatnonzero(~batch.attached["keep"])
        columns = (batch.attached[name][dropped].tolist() for name in ("file", "line", "reference", "similarity"))
        for number, file, line, reference, similarity in zip(dropped.tolist(), *columns, strict=True):
            parcel.keep_all(batch.items[at:number])
            shown: dict[str, Json] = {"repeats": f"{self.files[file]}:{line}"}
            if self.near:
                shown["similarity"] = round(similarity, 3)
            reason = "overlap" if reference else "near_duplicate" if self.near else "duplicate"
            parcel.drop(batch.items[number], reason, **shown)
            at = number + 1
        parcel.keep_all(batch.items[at:])
        return parcel


def dedup(rows: Frame, config: DedupConfig, job: Job) -> Outcome:
    """Remove repeated rows.

    Rows of `against` come first, so that what is also there is removed here.

    Raises:
        DataError: code `overlap` under the policy `strict` when rows are also in `against`.
    """
    frames = [job.open(config.against), rows] if config.against else [rows]
    found = _near(frames, config, job) if config.near else _exact(frames, config, job)
    places = _Places(frames)
    known = len(frames[0]) if config.against else 0
    first = found.first[known:]
    keep = stand_alone(first, known)
    reference = first < known if known else np.broadcast_to(np.False_, len(first))
    overlap = int(reference.sum())
    repeated = len(keep) - int(keep.sum()) - overlap
    if overlap and job.read.bad_rows == "strict":
        at, of = known + int(np.argmax(reference)), int(first[np.argmax(reference)])
        what = f"{overlap:,} rows are also in {', '.join(config.against)}; the first repeats {places.name(of)}"
        fix = "Leave them out with --bad_rows fix"
        raise DataError(what, where=places.name(at), code="overlap", fix=fix)
    report = Report(summary={"duplicates": repeated})
    if config.against:
        report.summary["overlap"] = overlap
    report.summary["groups"] = len(np.unique(leading(first, known)))
    _describe(report, found.first, places)
    file, line = places.of_removed(first, keep)
    attached = {
        "keep": keep,
        "file": file,
        "line": line,
        "reference": reference,
        "similarity": found.similarity[known:],
    }
    return Outcome(report, rows.scan(_Drop(places.names, config.near), "Writing", attached))


def _near(frames: list[Frame], config: DedupConfig, job: Job) -> Alike:
    sizes = Sizes(config.word_shingle, config.character_shingle)
    bands = bands_for(config.threshold, config.permutations)
    return alike(frames, Likeness(sizes, config.threshold, bands, config.key), job.scratch)


def _exact(frames: list[Frame], config: DedupConfig, job: Job) -> Alike:
    keys = Spill(job.scratch / "keys", np.uint64, 2)
    for frame in frames:
        for parcel in frame.scan(RowKeys(config.key), "Hashing rows"):
            keys.append(parcel.columns["key"])
    first = first_of_equals(keys)
    keys.close()
    return Alike(first, np.broadcast_to(np.float32(1), len(first)), 0)


class _Places:
    """Where the rows of several frames stand."""

    def __init__(self, frames: Sequence[Frame]):
        self._frames = frames
        self._starts = np.cumsum([0, *map(len, frames)])
        self.names = tuple(name for frame in frames for name in frame.files)

    def find(self, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
        """File (by its position among the names) and line of some rows, by their numbers among the rows of all frames;
        [some] each."""
        file, line = np.empty(len(rows), np.int32), np.empty(len(rows), np.uint32)
        names = 0
        for frame, (start, end) in zip(self._frames, pairwise(self._starts.tolist()), strict=True):
            mine = (rows >= start) & (rows < end)
            placed = frame.places(rows[mine] - start)
            file[mine], line[mine] = placed.file + names, placed.line
            names += len(placed.files)
        return file, line

    def of_removed(self, first: Rows, keep: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
        """Where the rows stand that removed ones repeat, [rows] each; anything for rows that are kept.

        What is left of `first` after that is of no use: its memory, which is that of all rows, takes the lines.
        """
        line = first.view(np.uint32) if first.dtype == np.int32 else np.empty(len(first), np.uint32)
        several = len(self.names) > 1
        file = np.zeros(len(first), np.int32) if several else np.broadcast_to(np.int32(0), len(first))
        for start in range(0, len(first), AT_ONCE):
            removed = start + np.flatnonzero(~keep[start : start + AT_ONCE])
            files, lines = self.find(first[removed])
            line[removed] = lines
            if several:
                file[removed] = files
        return file, line

    def name(self, row: int) -> str:
        """File and line of a row."""
        (file,), (line,) = self.find(np.array([row]))
        return f"{self.names[file]}:{line}"


def _describe(report: Report, first: Rows, places: _Places) -> None:
    """How large the groups are, and the largest ones."""
    leaders, sizes = np.unique(leading(first), return_counts=True)
    sizes += 1
    if not len(leaders):
        return
    order = np.lexsort((leaders, -sizes))[:_LISTED]
    report.tables.append(
        Table(
            "Largest groups",
            [{"first row": places.name(int(leaders[i])), "rows that say the same": int(sizes[i])} for i in order],
        )
    )
    counts = np.bincount(np.minimum(sizes, 20))
    used = np.flatnonzero(counts)
    labels = [f"{size}+" if size == 20 else str(size) for size in used.tolist()]
    report.charts.append(Chart("Sizes of groups", labels, counts[used].tolist(), x="rows in a group", y="groups"))


VERB = Verb(
    name="dedup",
    config=DedupConfig,
    run=dedup,
    flows=True,
    about="Find rows that are there more than once, identical or nearly so, and keep the first one.",
    examples=(
        "luthier data dedup my.jsonl --exact --output clean.jsonl --report dedup.json",
        "luthier data dedup my.jsonl more.jsonl --near --threshold 0.8 --output clean.jsonl",
        "luthier data dedup train.jsonl --near --against valid.jsonl test.jsonl --output train.clean.jsonl",
    ),
    reads=("against",),
)
