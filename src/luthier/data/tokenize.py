"""Encoding whole sets: by all cores, in shards, so that an interrupted run goes on at the first missing one."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import DataError
from luthier.base.records import Fault
from luthier.data.batch import Group
from luthier.data.checks import identity_key, normalised_key
from luthier.data.encode import Encoding, Facts
from luthier.data.row import Row, Rows
from luthier.data.tokens import Shard, TokenSet, is_whole, more_arrays, publish

SHARD_ROWS = 4096
"""Most rows of a shard."""
SHARDS = 16
"""A set is cut into so many where its shards would be larger than LEAST_ROWS, so that all cores finish together."""
LEAST_ROWS = 256
FEW_ROWS = 2000
"""Below this, starting processes costs more than it saves."""


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
    size = min(SHARD_ROWS, max(LEAST_ROWS, -(-len(chosen) // SHARDS)))
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    base = hashlib.blake2b(f"{rows.fingerprint}{encoding.fingerprint}".encode(), digest_size=16)
    folders = [cache / "tokens" / _key(base, part) for part in parts]
    missing = [(part, folder) for part, folder in zip(parts, folders, strict=True) if not is_whole(folder)]
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


def _difficulty(row: Row) -> float:
    """What the row's column `difficulty` says; NaN without one."""
    value = None if isinstance(row.value, Fault) else row.value.get("difficulty")
    return float(value) if isinstance(value, int | float) else math.nan


def _write_shard(rows: Rows, encoding: Encoding, task: Task) -> int:
    part, folder = task
    facts = Facts()
    groups: list[Group] = []
    origins: list[int] = []
    names: list[bytes] = []
    measures: list[tuple[float, float]] = []
    for position, index in enumerate(part.tolist()):
        made, record = encoding.groups(rows[index], facts)
        if record is not None:
            groups += made
            origins += [position] * len(made)
            names += [identity_key(record) + normalised_key(record)] * len(made)
            measures += [(record.weight, _difficulty(rows[index]))] * len(made)
    sequences = [tokens for group in groups for tokens in group.sequences]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.concatenate([np.empty(0, np.int32), *(tokens.ids for tokens in sequences)]),
        "weights": np.concatenate([np.empty(0, np.float32), *(tokens.weights for tokens in sequences)]),
        "lengths": np.array([len(tokens) for tokens in sequences], dtype=np.int64),
        "members": np.array([len(group.sequences) for group in groups], dtype=np.int64),
        "rows": np.array(origins, dtype=np.int64),
        "names": np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 32),
        "measures": np.array(measures, dtype=np.float32).reshape(-1, 2),
        **more_arrays(sequences),
    }
    publish(folder, arrays, asdict(facts))
    return len(part)
