"""Tokenised groups on disk, kept under the hash of what they were made from and memory-mapped.

    <cache>/tokens/<key>/ids.npy weights.npy lengths.npy members.npy rows.npy names.npy measures.npy facts.json  (shard)

where the task needs them also targets.npy, segments.npy, and values.npy with value_ends.npy.
A shard is written in a temporary folder and renamed, so it is whole or absent.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.errors import RunError
from luthier.base.rundir import storage_error
from luthier.data.batch import Group, Tokens
from luthier.data.encode import Facts


class Groups(Protocol):
    """A set of groups with random access, all of kind 0 unless it is `Kinds`."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each group."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything the groups were made from."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Group: ...


class Shard:
    """A folder of encoded groups, memory-mapped."""

    def __init__(self, folder: Path):
        self.facts = Facts(**orjson.loads((folder / "facts.json").read_bytes()))
        self._files = folder / "ids.npy", folder / "weights.npy"
        self._targets, self._segments, self._values = (
            file if (file := folder / f"{name}.npy").exists() else None for name in ("targets", "segments", "values")
        )
        self._members = np.load(folder / "members.npy", allow_pickle=False)
        self._ends = np.concatenate([[0], np.cumsum(np.load(folder / "lengths.npy", allow_pickle=False))])
        self._firsts = np.concatenate([[0], np.cumsum(self._members)])
        self.rows: NDArray[np.int64] = np.load(folder / "rows.npy", allow_pickle=False)
        """Which of the shard's rows each group came from."""
        self.names: NDArray[np.uint8] = np.load(folder / "names.npy", allow_pickle=False)
        """Identity and normalised key of each group's row, uint8 [groups, 32]."""
        self.measures: NDArray[np.float32] = np.load(folder / "measures.npy", allow_pickle=False)
        """Weight and difficulty of each group's row, float32 [groups, 2]; the latter NaN where it has none."""

    def __len__(self) -> int:
        return len(self._members)

    @property
    def tokens(self) -> int:
        """Tokens of all groups."""
        return int(self._ends[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each group."""
        return self._ends[self._firsts[1:]] - self._ends[self._firsts[:-1]]

    def __getitem__(self, index: int) -> Group:
        ids, weights = map(_map, self._files)
        bounds = self._ends[self._firsts[index] : self._firsts[index + 1] + 1].tolist()
        first = int(self._firsts[index])
        return Group(
            tuple(
                Tokens(
                    np.array(ids[start:end]),
                    np.array(weights[start:end]),
                    None if self._targets is None else np.array(_map(self._targets)[start:end]),
                    None if self._segments is None else np.array(_map(self._segments)[start:end]),
                    None if self._values is None else self._values_of(self._values, first + number),
                )
                for number, (start, end) in enumerate(pairwise(bounds))
            )
        )

    def _values_of(self, file: Path, sequence: int) -> NDArray[np.float32]:
        ends = _map(file.with_name("value_ends.npy"))
        return np.array(_map(file)[int(ends[sequence - 1]) if sequence else 0 : int(ends[sequence])])


class TokenSet:
    """The groups of one data set, in the order of its rows."""

    def __init__(self, shards: Sequence[Shard], fingerprint: str):
        self.shards, self.fingerprint = shards, fingerprint
        self.lengths = np.concatenate([np.empty(0, np.int64), *(shard.lengths for shard in shards)])
        self._starts = [0, *accumulate(len(shard) for shard in shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Group:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.shards[shard][index - self._starts[shard]]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Position, among the encoded rows, of the row each group came from."""
        starts = [0, *accumulate(shard.facts.rows for shard in self.shards)]
        parts = [shard.rows + start for shard, start in zip(self.shards, starts, strict=False)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    @cached_property
    def names(self) -> NDArray[np.uint8]:
        """Identity and normalised key of each group's row, uint8 [groups, 32]."""
        return np.concatenate([np.empty((0, 32), np.uint8), *(shard.names for shard in self.shards)])

    @cached_property
    def measures(self) -> NDArray[np.float32]:
        """Weight and difficulty of each group's row, float32 [groups, 2]; the latter NaN where it has none."""
        return np.concatenate([np.empty((0, 2), np.float32), *(shard.measures for shard in self.shards)])

    @cached_property
    def facts(self) -> Facts:
        """What happened to the rows."""
        total = Facts()
        for shard in self.shards:
            total.add(shard.facts)
        return total


class Selected:
    """Some groups of several sets, in a given order, perhaps more than once.

    Args:
        picks: int64 [N, 2] of (set, group).
    """

    def __init__(self, sets: Sequence[Groups], picks: NDArray[np.int64]):
        self.sets, self.picks = sets, picks
        self.lengths = np.zeros(len(picks), dtype=np.int64)
        hashed = hashlib.blake2b(digest_size=16)
        for number, part in enumerate(sets):
            mine = picks[:, 0] == number
            self.lengths[mine] = part.lengths[picks[mine, 1]]
            hashed.update(part.fingerprint.encode())
        hashed.update(np.ascontiguousarray(picks).tobytes())
        self.fingerprint = hashed.hexdigest()

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, index: int) -> Group:
        number, group = self.picks[index].tolist()
        return self.sets[number][group]


class Kinds:
    """Sets for several tasks as one: the groups of the first, then those of the second, each with its number as kind.

    Attributes:
        starts: where each set begins, and the end.
    """

    def __init__(self, sets: Sequence[Groups]):
        self.sets = tuple(sets)
        self.starts = (0, *accumulate(len(part) for part in sets))
        self.lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in sets)])
        self.fingerprint = "kinds:" + ":".join(part.fingerprint for part in sets)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Group:
        kind = self.kind(index)
        return replace(self.sets[kind][index - self.starts[kind]], kind=kind)

    def kind(self, index: int) -> int:
        """Which set a group is of."""
        return bisect_right(self.starts, index) - 1


def more_arrays(sequences: Sequence[Tokens]) -> dict[str, NDArray[Any]]:
    """The arrays of what only some tasks need; all sequences of a set bring targets, or none does."""
    arrays: dict[str, NDArray[Any]] = {}
    targets = [tokens.targets for tokens in sequences if tokens.targets is not None]
    segments = [tokens.segments for tokens in sequences if tokens.segments is not None]
    values = [tokens.values for tokens in sequences if tokens.values is not None]
    assert all(len(some) in (0, len(sequences)) for some in (targets, segments, values)), "all sequences, or none"
    if targets:
        arrays["targets"] = np.concatenate(targets)
    if segments:
        arrays["segments"] = np.concatenate(segments)
    if values:
        arrays["values"] = np.concatenate(values)
        arrays["value_ends"] = np.cumsum([len(some) for some in values])
    return arrays


def publish(folder: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write arrays and facts.json, whole or not at all.  Raises RunError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        try:
            for name, array in arrays.items():
                np.save(staging / f"{name}.npy", array, allow_pickle=False)
            (staging / "facts.json").write_bytes(orjson.dumps(dict(facts)))
            staging.rename(folder)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
            if not folder.exists():  # else another process has just published the same
                raise
    except OSError as error:
        raise _cache_error(error, folder.parent) from error


def _cache_error(error: OSError, place: Path) -> RunError:
    caused = storage_error(error, place)
    return RunError(caused.what, where=caused.where, code=caused.code, fix="Choose another place with --data.cache_dir")


@lru_cache(maxsize=256)
def _map(file: Path) -> NDArray[Any]:
    """A file of an array, memory-mapped.  A map holds a file open, so only the latest ones are kept."""
    # An empty array cannot be mapped.
    mode = "r" if file.stat().st_size > 128 else None
    return np.load(file, mmap_mode=mode, allow_pickle=False)


def is_whole(folder: Path) -> bool:
    """Whether a shard is there.  One that a failing disk or a power cut has damaged is removed, to be made again."""
    if not folder.exists():
        return False
    try:
        shard = Shard(folder)
        sizes = {len(_map(folder / "ids.npy")), len(_map(folder / "weights.npy")), shard.tokens}
        more = [folder / "targets.npy", folder / "segments.npy"]
        sizes |= {len(_map(file)) for file in more if file.exists()}
    except (OSError, ValueError, TypeError):
        sizes = set[int]()
    if len(sizes) != 1:
        shutil.rmtree(folder, ignore_errors=True)
    return len(sizes) == 1
