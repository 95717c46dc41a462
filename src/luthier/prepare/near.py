"""Rows whose text is nearly the same: candidates by MinHash bands, judged by the shingles they really share.

Everything is joined into groups by the pairs found, so a row may stand in a group through a third one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json
from luthier.prepare.frame import Frame
from luthier.prepare.groups import Rows, first_of_equals, join, positions, stand_alone, width
from luthier.prepare.identity import keys_of
from luthier.prepare.minhash import Bands, band_keys
from luthier.prepare.parcel import Batch, Item, Parcel
from luthier.prepare.shingles import ShingleSets, Sizes, Tokens, jaccard, shingle_sets, tokenise
from luthier.prepare.spill import IN_MEMORY, Spill
from luthier.prepare.view import column, text_of, text_of_all

WINDOW = 32
"""Texts of one band are compared with this many that follow them; smaller bands are compared completely."""
_PAIRS_AT_ONCE = 50_000
_SHINGLES_AT_ONCE = 4_000_000
_KEYS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Likeness:
    """What is compared, and when it is nearly the same."""

    sizes: Sizes
    threshold: float
    bands: Bands
    columns: tuple[str, ...] = ()
    """Columns whose text counts; none are all text of the row."""

    def tokens(self, items: Sequence[Item]) -> list[Tokens]:
        """The tokens of the rows' texts."""
        if not self.columns:
            return tokenise(text_of_all([item.value for item in items]), self.sizes)
        parts = ([column(item.value, name) for name in self.columns] for item in items)
        return tokenise(["\n".join(_text(part) for part in some) for some in parts], self.sizes)


def _text(value: Json) -> str:
    if isinstance(value, dict | list):
        return text_of({"text": value})
    return "" if value is None else str(value)


@dataclass(frozen=True)
class _Summaries:
    """Work of the first pass: a key for texts with equal tokens, and the keys of the bands."""

    likeness: Likeness

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        texts = self.likeness.tokens(batch.items)
        pairs = zip(batch.items, texts, strict=True)
        # A row without words is only like one that is identical as a whole.
        parcel.columns["key"] = keys_of([t.text if t.number else "\0" + item.json().decode() for item, t in pairs])
        parcel.columns["bands"] = band_keys(texts, self.likeness.bands)
        parcel.columns["shingled"] = np.array([tokens.number >= tokens.size for tokens in texts], bool)
        return parcel


@dataclass(frozen=True)
class _Shingles:
    """Work of the second pass: the shingles of the rows that may be like others."""

    likeness: Likeness

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        wanted = np.flatnonzero(batch.attached["wanted"]).tolist()
        sets = shingle_sets(self.likeness.tokens([batch.items[number] for number in wanted]))
        parcel.columns.update(hashes=sets.hashes, counts=sets.counts)
        return parcel


@dataclass(frozen=True)
class Alike:
    """Rows in groups.  All arrays have one value for each row of all frames, in order."""

    first: Rows
    """The first row of the group."""
    similarity: NDArray[np.float32]
    """To the row it was joined with; 1 for equal texts, NaN for rows that stay alone."""
    compared: int
    """Pairs whose shingles were counted."""


def alike(frames: Sequence[Frame], likeness: Likeness, scratch: Path) -> Alike:
    """Find the rows of several frames that are nearly the same.

    Memory grows by about 35 bytes a row, and by the shingles of those that share a band, up to a limit; the rest
    goes to files in `scratch`.

    Raises:
        DataError: as reading the frames.
        RunError: code `disk_full` or `cannot_write`.
    """
    bands = [
        Spill(scratch / f"band-{number}", np.uint64, limit=IN_MEMORY // likeness.bands.count)
        for number in range(likeness.bands.count)
    ]
    keys = Spill(scratch / "keys", np.uint64, 2)
    shingled: list[NDArray[np.bool_]] = []
    sizes: list[int] = []
    for frame in frames:
        for parcel in frame.scan(_Summaries(likeness), "Hashing texts"):
            keys.append(parcel.columns["key"])
            shingled.append(parcel.columns["shingled"])
            for number, band in enumerate(bands):
                band.append(parcel.columns["bands"][:, number])
        sizes.append(len(frame))
    first = first_of_equals(keys)
    keys.close()
    alone = stand_alone(first)
    alone &= np.concatenate(shingled)
    wanted = np.zeros(len(first), bool)
    wanted[alone] = _in_company(alone, bands)
    rows = positions(wanted)
    sets = _Sets(scratch / "shingles", len(rows))
    start = 0
    for frame, size in zip(frames, sizes, strict=True):
        for parcel in frame.scan(_Shingles(likeness), "Reading candidates", {"wanted": wanted[start : start + size]}):
            sets.add(ShingleSets(parcel.columns["hashes"], parcel.columns["counts"]))
        start += size
    root, similarity, compared = _join_pairs(wanted, bands, sets, likeness.threshold)
    for spill in (*bands, sets.hashes):
        spill.close()
    likest = np.full(len(first), np.nan, np.float32)
    likest[rows] = similarity
    likest[~stand_alone(first)] = 1.0
    first[rows] = rows[root]
    return Alike(first[first], likest, compared)


def _in_company(rows: NDArray[np.bool_], bands: Sequence[Spill]) -> NDArray[np.bool_]:
    """Which of some rows share a band with another one of them.

    This is where most is held: the keys of a band twice, once in order.  Ordering numbers of rows would take three
    times as much, and longer.

    Args:
        rows: which rows count, [all rows].
    """
    found = np.zeros(int(rows.sum()), bool)
    for band in bands:
        keys = _of(band, rows, len(found))
        ordered = np.sort(keys)
        shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        for start in range(0, len(keys) if len(shared) else 0, _KEYS_AT_ONCE):
            some = keys[start : start + _KEYS_AT_ONCE]
            at = np.minimum(np.searchsorted(shared, some), len(shared) - 1)
            found[start : start + _KEYS_AT_ONCE] |= shared[at] == some
    return found


def _of(band: Spill, rows: NDArray[np.bool_], count: int) -> NDArray[np.uint64]:
    """The keys of some rows, never beside those of all."""
    keys = np.empty(count, np.uint64)
    start = at = 0
    for block in band.blocks():
        some = block[rows[start : start + len(block)]]
        keys[at : at + len(some)] = some
        start, at = start + len(block), at + len(some)
    return keys


class _Sets:
    """The shingles of the candidates, by their number."""

    def __init__(self, path: Path, number: int):
        self.hashes = Spill(path, np.uint64)
        self.counts = np.empty(number, np.int64)
        self._added = 0

    def add(self, sets: ShingleSets) -> None:
        self.hashes.append(sets.hashes)
        self.counts[self._added : self._added + len(sets.counts)] = sets.counts
        self._added += len(sets.counts)

    def of(self, numbers: Rows, ends: NDArray[np.int64]) -> ShingleSets:
        counts = self.counts[numbers]
        return ShingleSets(self.hashes.take(ends[numbers] - counts, ends[numbers]), counts)


def _join_pairs(
    rows: NDArray[np.bool_], bands: Sequence[Spill], sets: _Sets, threshold: float
) -> tuple[Rows, NDArray[np.float32], int]:
    """Groups of candidates by their numbers, the similarity that joined each one, and the pairs compared.

    Rows that are in one group already need no comparing: the pair could not change the groups.

    Args:
        rows: which rows are candidates, [all rows].
    """
    counts = sets.counts
    ends = np.cumsum(counts)
    root = np.arange(len(counts), dtype=width(len(counts)))
    likest = np.full(len(counts), np.nan, np.float32)
    compared = 0
    for band in bands:
        keys = _of(band, rows, len(counts))
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        del keys
        for distance in range(1, WINDOW + 1):
            same = np.flatnonzero(ordered[distance:] == ordered[:-distance])
            if not len(same):
                break
            pairs = np.stack([order[same], order[same + distance]], axis=1)
            few = np.minimum(counts[pairs[:, 0]], counts[pairs[:, 1]])
            many = np.maximum(counts[pairs[:, 0]], counts[pairs[:, 1]])
            pairs = pairs[(root[pairs[:, 0]] != root[pairs[:, 1]]) & (few >= threshold * many)]
            compared += len(pairs)
            good = np.zeros(len(pairs), bool)
            start = 0
            for some in _blocks(pairs, counts):
                value = jaccard(sets.of(some[:, 0], ends), sets.of(some[:, 1], ends))
                near = value >= threshold
                good[start : start + len(some)] = near
                start += len(some)
                for side in (0, 1):
                    np.fmax.at(likest, some[near][:, side], value[near].astype(np.float32))
            root = join(root, pairs[good])
    return root, likest, compared


def _blocks(pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Pairs in blocks that are small enough to compare at once."""
    sizes = np.cumsum(counts[pairs].sum(axis=1))
    cuts = (
        np.unique(np.searchsorted(sizes, np.arange(_SHINGLES_AT_ONCE, sizes[-1], _SHINGLES_AT_ONCE)))
        if len(pairs)
        else []
    )
    blocks = np.split(pairs, cuts)
    return [block[at : at + _PAIRS_AT_ONCE] for block in blocks for at in range(0, len(block), _PAIRS_AT_ONCE)]
