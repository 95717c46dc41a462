"""Tokenised groups on disk: encoded once by all cores, kept under the hash of what they were made from, memory-mapped.

    <cache>/tokens/<key>/ids.npy weights.npy lengths.npy members.npy rows.npy names.npy facts.json    (one shard)

A shard is written in a temporary folder and renamed, so an interrupted run goes on at the first missing shard.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.errors import DataError, RunError
from luthier.base.records import BadRow, Fault, Json, Record, Text
from luthier.base.rundir import storage_error
from luthier.data.batch import Group, Tokens
from luthier.data.checks import RecordOptions, identity_key, ignored_columns, normalised_key, to_record
from luthier.data.config import Overlong
from luthier.data.overlong import fit
from luthier.data.row import Row, Rows

FORMAT = 1
"""Part of every key: raise it when the files or the meaning of their numbers change."""
SHARD_ROWS = 2048
FEW_ROWS = 2000
"""Below this, starting processes costs more than it saves."""
TEXT_KEPT = 2000
"""Characters of a rejected row that are kept for people to read."""

Rejected = dict[str, Json]
"""A line of rejected.jsonl: file, line, code, path, message, row."""


class Groups(Protocol):
    """A set of groups with random access."""

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


@dataclass(slots=True)
class Facts:
    """What happened to the rows of a set, for its report."""

    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    repaired: dict[str, int] = field(default_factory=dict[str, int])
    truncated: int = 0
    split: int = 0
    stopped: int = 0
    """Kept rows whose last trained token is a stop token."""
    chats: int = 0
    trained: int = 0
    """Tokens with a weight."""
    ignored: list[str] = field(default_factory=list[str])
    """Columns that have no part in a record."""
    rejected: list[Rejected] = field(default_factory=list[Rejected])

    def add(self, other: Facts) -> None:
        """Take in the facts of another shard."""
        for name in ("rows", "kept", "truncated", "split", "stopped", "chats", "trained"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.dropped, other.dropped), (self.repaired, other.repaired)):
            for code, count in theirs.items():
                mine[code] = mine.get(code, 0) + count
        self.ignored += [name for name in other.ignored if name not in self.ignored]
        self.rejected += other.rejected


@dataclass(frozen=True)
class Encoding:
    """How rows become groups.  Everything but the callable enters the cache's keys; `key` stands for it."""

    encode: Callable[[Record], Group | None]
    key: str
    options: RecordOptions
    max_length: int
    overlong: Overlong
    stop_ids: frozenset[int]

    @property
    def fingerprint(self) -> str:
        """Hash of all of it."""
        parts = [FORMAT, self.key, asdict(self.options), self.max_length, self.overlong, sorted(self.stop_ids)]
        return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()

    def groups(self, row: Row, facts: Facts) -> tuple[list[Group], Record | None]:
        """The groups of one row, counted in `facts`.

        Raises:
            DataError: the row's fault, under the policy `strict`.
        """
        facts.rows += 1
        record, repairs = to_record(row, self.options)
        facts.ignored += [name for name in ignored_columns(row, self.options) if name not in facts.ignored]
        for repair in repairs:
            facts.repaired[repair.code] = facts.repaired.get(repair.code, 0) + 1
        if isinstance(record, Fault):
            return self._reject(record, row, facts), None
        try:
            group = self.encode(record)
        except BadRow as error:
            return self._reject(error.fault, row, facts), None
        if group is None:
            fault = Fault("nothing_to_train", record.where, "no token of this row would be trained")
            return self._reject(fault, row, facts), None
        groups, outcome = fit(group, self.max_length, self.overlong)
        if not groups:
            what = f"{len(group)} tokens are more than max_length {self.max_length}"
            if outcome == "no_target_left":
                what += ", and no trained token would be left"
            return self._reject(Fault(outcome, record.where, what), row, facts), None
        facts.kept += 1
        facts.chats += not isinstance(record, Text)
        facts.truncated += outcome == "truncated"
        facts.split += outcome == "split"
        facts.stopped += any(self._stops(tokens) for group in groups for tokens in group.sequences)
        facts.trained += sum(int((tokens.weights != 0).sum()) for group in groups for tokens in group.sequences)
        return groups, record

    def _stops(self, tokens: Tokens) -> bool:
        # The last but one counts too: when all of a chat is trained, ChatML's line break comes behind the stop.
        ends = tokens.ids[np.flatnonzero(tokens.weights)[-2:]].tolist()
        return any(end in self.stop_ids for end in ends)

    def _reject(self, fault: Fault, row: Row, facts: Facts) -> list[Group]:
        if self.options.bad_rows == "strict" and fault.code not in ("too_long", "no_target_left", "nothing_to_train"):
            fix = "Repair the row, or use --bad_rows fix to repair or drop such rows"
            raise DataError(fault.message, where=f"{fault.where} {fault.path}".strip(), code=fault.code, fix=fix)
        facts.dropped[fault.code] = facts.dropped.get(fault.code, 0) + 1
        text = None if isinstance(row.value, Fault) else orjson.dumps(row.value).decode(errors="replace")[:TEXT_KEPT]
        facts.rejected.append(
            {
                "file": fault.where.file,
                "line": fault.where.line,
                "code": fault.code,
                "path": fault.path,
                "message": fault.message,
                "row": text,
            }
        )
        return []


class Shard:
    """A folder of encoded groups, memory-mapped."""

    def __init__(self, folder: Path):
        self.facts = Facts(**orjson.loads((folder / "facts.json").read_bytes()))
        self._files = folder / "ids.npy", folder / "weights.npy"
        self._members = np.load(folder / "members.npy", allow_pickle=False)
        self._ends = np.concatenate([[0], np.cumsum(np.load(folder / "lengths.npy", allow_pickle=False))])
        self._firsts = np.concatenate([[0], np.cumsum(self._members)])
        self.rows: NDArray[np.int64] = np.load(folder / "rows.npy", allow_pickle=False)
        """Which of the shard's rows each group came from."""
        self.names: NDArray[np.uint8] = np.load(folder / "names.npy", allow_pickle=False)
        """Identity and normalised key of each group's row, uint8 [groups, 32]."""

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
        return Group(
            tuple(Tokens(np.array(ids[start:end]), np.array(weights[start:end])) for start, end in pairwise(bounds))
        )


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


def encode_rows(
    rows: Rows,
    chosen: NDArray[np.int64],
    encoding: Encoding,
    cache: Path,
    *,
    workers: int | None,
    progress: Callable[[int], None],
) -> TokenSet:
    """Encode some rows of a set, or find them encoded.

    Args:
        chosen: the rows, in order.
        cache: root folder of the token cache.
        workers: processes; None takes one per core, or this process alone for few rows.
        progress: told how many rows have been added.

    Raises:
        DataError: a faulty row under `strict`, or a worker that died.
        RunError: the cache cannot be written.
    """
    parts = [chosen[start : start + SHARD_ROWS] for start in range(0, len(chosen), SHARD_ROWS)]
    base = hashlib.blake2b(f"{rows.fingerprint}{encoding.fingerprint}".encode(), digest_size=16)
    folders = [cache / "tokens" / _key(base, part) for part in parts]
    missing = [(part, folder) for part, folder in zip(parts, folders, strict=True) if not _is_whole(folder)]
    progress(len(chosen) - sum(len(part) for part, _ in missing))
    if workers is None:
        workers = (os.cpu_count() or 1) if sum(len(part) for part, _ in missing) >= FEW_ROWS else 1
    with _mapper(min(workers, len(missing)), rows, encoding) as run:
        for count in run(missing):
            progress(count)
    shards = [Shard(folder) for folder in folders]
    return TokenSet(shards, hashlib.blake2b("".join(f.name for f in folders).encode(), digest_size=16).hexdigest())


def _key(base: hashlib.blake2b, part: NDArray[np.int64]) -> str:
    hashed = base.copy()
    hashed.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
    return hashed.hexdigest()


Task = tuple[NDArray[np.int64], Path]


@contextmanager
def _mapper(workers: int, rows: Rows, encoding: Encoding) -> Generator[Callable[[Sequence[Task]], Iterator[int]]]:
    """Something that writes shards and yields how many rows each had, in order."""
    if workers <= 1:
        yield lambda tasks: (_write_shard(rows, encoding, task) for task in tasks)
        return
    # Forked workers share what is loaded; elsewhere than on Linux forking is not safe and they load it again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(rows, encoding, os.getpid())) as pool:

        def run(tasks: Sequence[Task]) -> Iterator[int]:
            with warnings.catch_warnings():
                # Python 3.12 warns about forking beside threads; the workers use none of the parent's.
                warnings.simplefilter("ignore", DeprecationWarning)
                done = pool.map(_work, tasks)
            try:
                yield from done
            except BrokenProcessPool as error:
                fix = "It may have run out of memory; try a smaller --dataset_num_proc"
                raise DataError("a tokenising process died", fix=fix, code="worker_died") from error

        try:
            yield run
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_job: tuple[Rows, Encoding]
"""A worker's share of the work, set once when it starts."""


def _begin(rows: Rows, encoding: Encoding, parent: int) -> None:
    global _job
    _job = rows, encoding
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A killed parent cannot end its workers, so they watch for it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _work(task: Task) -> int:
    return _write_shard(*_job, task)


def _write_shard(rows: Rows, encoding: Encoding, task: Task) -> int:
    part, folder = task
    facts = Facts()
    groups: list[Group] = []
    origins: list[int] = []
    names: list[bytes] = []
    for position, index in enumerate(part.tolist()):
        made, record = encoding.groups(rows[index], facts)
        if record is not None:
            groups += made
            origins += [position] * len(made)
            names += [identity_key(record) + normalised_key(record)] * len(made)
    sequences = [tokens for group in groups for tokens in group.sequences]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.concatenate([np.empty(0, np.int32), *(tokens.ids for tokens in sequences)]),
        "weights": np.concatenate([np.empty(0, np.float32), *(tokens.weights for tokens in sequences)]),
        "lengths": np.array([len(tokens) for tokens in sequences], dtype=np.int64),
        "members": np.array([len(group.sequences) for group in groups], dtype=np.int64),
        "rows": np.array(origins, dtype=np.int64),
        "names": np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 32),
    }
    _publish(folder, arrays, facts)
    return len(part)


def _publish(folder: Path, arrays: dict[str, NDArray[Any]], facts: Facts) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        try:
            for name, array in arrays.items():
                np.save(staging / f"{name}.npy", array, allow_pickle=False)
            (staging / "facts.json").write_bytes(orjson.dumps(asdict(facts)))
            staging.rename(folder)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
            if not folder.exists():  # else another process has just published the same shard
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


def _is_whole(folder: Path) -> bool:
    """Whether a shard is there.  One that a failing disk or a power cut has damaged is removed, to be made again."""
    if not folder.exists():
        return False
    try:
        shard = Shard(folder)
        sizes = {len(_map(folder / "ids.npy")), len(_map(folder / "weights.npy")), shard.tokens}
    except (OSError, ValueError, TypeError):
        sizes = set[int]()
    if len(sizes) != 1:
        shutil.rmtree(folder, ignore_errors=True)
    return len(sizes) == 1
