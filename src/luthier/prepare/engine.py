"""Running work on chunks through Daft: in this process, in several, or on a Ray cluster, with one result.

The only module that knows Daft.  Chunks go in and parcels come out in order; what is under way at a time is bounded
by the number of workers, so the size of an input does not matter.

Daft keeps the order and bounds what is under way.  Under the native runner it passes numbers only: the tasks stay
where they are, and its threads work on them or hand them to a pool of processes that lives as long as the engine
(Daft's own would start anew for every pass).  Ray gets the tasks themselves.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.util import find_spec
from queue import Queue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError, DoesNotFit, MissingExtra
from luthier.prepare.arrays import arrow_of
from luthier.prepare.parcel import Parcel

_AHEAD = 4
"""Chunks for each worker that may be ready before they are taken."""

SMALL_BYTES = 24 * 2**20
"""Below this, starting processes takes longer than the work."""
Call = Callable[[Any], Parcel]


class Engine:
    """Where the work is done.  Use as a context, which ends the processes that were started."""

    def __init__(
        self, runner: Literal["native", "ray"] = "native", workers: int | None = None, ray_address: str | None = None
    ):
        self._runner: Literal["native", "ray"] = runner
        self._workers, self._ray_address = workers, ray_address
        self._pool: ProcessPoolExecutor | None = None

    def run(self, work: Call, tasks: Sequence[object], size: int) -> Iterator[Parcel]:
        """`work` of every task, in the order of the tasks.

        Args:
            size: about how many bytes are read in all; little is not worth other processes.

        Raises:
            DoesNotFit: a process was ended from outside, as the system does when memory runs out.
        """
        if not tasks:
            return
        many = min(self._many(size), len(tasks))
        if self._runner == "ray":
            yield from _on_ray(_daft("ray", self._ray_address), work, tasks, many)
            return
        now = _Pass(work, tasks, many, self._pool_of(many) if many > 1 else None)
        try:
            yield from now.parcels(_daft("native", None))
        except BrokenProcessPool as error:
            fix = "Most likely memory ran out: use fewer --workers, or a smaller --max_row_bytes"
            raise DoesNotFit("a worker process was ended from outside", fix=fix) from error
        finally:
            now.end()

    def _many(self, size: int) -> int:
        """How many chunks are worked on at a time."""
        if self._workers is not None:
            return self._workers
        if self._runner == "native" and size <= SMALL_BYTES:
            return 1
        return os.cpu_count() or 1

    def _pool_of(self, many: int) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("fork" if _can_fork() else "spawn")
            self._pool = ProcessPoolExecutor(many, mp_context=context, initializer=_begin)
            with warnings.catch_warnings():  # Python counts the idle threads of numpy and pyarrow
                warnings.filterwarnings("ignore", "This process", DeprecationWarning)
                self._pool.submit(int).result()  # forks now, while it can
        return self._pool

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class _Pass:
    """One pass under the native runner.

    Daft is driven by a thread of its own: an interrupt in the middle of it would leave its threads running, and Python
    must not end before they do.
    """

    def __init__(self, work: Call, tasks: Sequence[object], many: int, pool: ProcessPoolExecutor | None):
        self._work, self._tasks, self._many, self._pool = work, tasks, many, pool
        self._done: dict[int, Parcel | BaseException] = {}
        self._ready: Queue[int | BaseException | None] = Queue(maxsize=many)
        self._over = False
        self._taken = 0
        self._moved = threading.Condition()
        self._under_way: dict[int, Future[Parcel]] = {}
        self._handed_out = 0
        self._driver: threading.Thread | None = None
        self.number = max(_passes, default=0) + 1
        _passes[self.number] = self

    def parcels(self, daft: Any) -> Iterator[Parcel]:
        """The results, as they become ready, in order."""
        self._driver = threading.Thread(target=self._drive, args=(daft,), name="daft", daemon=True)
        self._driver.start()
        while (found := self._ready.get()) is not None:
            parcel = self._done.pop(found) if isinstance(found, int) else found
            if isinstance(parcel, BaseException):
                raise parcel
            with self._moved:
                self._taken += 1
                self._moved.notify_all()
            yield parcel

    def _drive(self, daft: Any) -> None:
        number = self.number

        @daft.func.batch(return_dtype=daft.DataType.int64(), batch_size=1, use_process=False)
        def work(tasks: Any) -> list[int]:
            return [_do(number, task) for task in tasks.to_pylist()]

        try:
            frame = daft.from_pydict({"task": list(range(len(self._tasks)))}).into_batches(1)
            for row in frame.select(work(frame["task"]).alias("task")).iter_rows(results_buffer_size=self._many):
                self._ready.put(row["task"])
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)

    def do(self, task: int) -> int:
        """Work on one task, unless the pass was given up; its number again.

        Daft starts tasks in order and as fast as it can: those far ahead of what has been taken wait here, or all that
        a fast pass makes would be held for whoever is slow to write it.
        """
        with self._moved:
            self._moved.wait_for(lambda: self._over or task < self._taken + _AHEAD * self._many)
            if self._pool is not None and not self._over:
                self._hand_out(self._pool, min(task + 2 * self._many, len(self._tasks)))
        if not self._over:
            try:
                self._done[task] = self._one(task)
            except BaseException as error:  # told where the results are awaited
                self._done[task] = error
        return task

    def _hand_out(self, pool: ProcessPoolExecutor, end: int) -> None:
        """Give tasks to the processes before anybody asks for them, so that none waits while a result is fetched."""
        for task in range(self._handed_out, end):
            self._under_way[task] = pool.submit(self._work, self._tasks[task])
        self._handed_out = max(end, self._handed_out)

    def _one(self, task: int) -> Parcel:
        if self._pool is not None:
            return self._under_way.pop(task).result()
        with _no_collections():
            return self._work(self._tasks[task])

    def end(self) -> None:
        """Let no further task start, and wait for those that have."""
        with self._moved:
            self._over = True
            self._moved.notify_all()
        for future in list(self._under_way.values()):
            future.cancel()
        while self._driver is not None and self._driver.is_alive():
            while not self._ready.empty():
                self._ready.get()
            self._driver.join(timeout=0.01)
        _passes.pop(self.number, None)


_passes: dict[int, _Pass] = {}
"""Passes under way, by number: Daft wants to be able to copy what it calls."""


def _do(number: int, task: int) -> int:
    return _passes[number].do(task)


def _on_ray(daft: Any, work: Call, tasks: Sequence[object], many: int) -> Iterator[Parcel]:
    @daft.cls(use_process=False, max_concurrency=many)
    class Worker:
        def __init__(self) -> None:
            self.work = work

        @daft.method.batch(return_dtype=daft.DataType.python(), batch_size=1)
        def __call__(self, tasks: Any) -> list[Parcel]:
            return [self.work(task) for task in tasks.to_pylist()]

    frame = daft.from_pydict({"task": list(tasks)}).into_batches(1)
    for row in frame.select(Worker()(frame["task"]).alias("parcel")).iter_rows(results_buffer_size=many):
        yield row["parcel"]


def _can_fork() -> bool:
    """Whether processes may be copies of this one, which start at once; a fresh one imports everything anew.

    A copy has no threads but inherits the locks they hold: not once Daft or PyTorch have theirs, nor where somebody
    else may have some.  The pools of numpy and pyarrow are made for it.
    """
    alone = threading.active_count() == 1 and not {"daft", "torch"} & sys.modules.keys()
    return sys.platform == "linux" and alone


def _begin() -> None:
    """The start of a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # see `_no_collections`


@contextmanager
def _no_collections() -> Generator[None]:
    """Rows hold no cycles, and looking for them takes a tenth of the time that reading them takes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def series(values: Sequence[str] | Sequence[bytes] | NDArray[np.uint64]) -> Any:
    """Values as a Daft series, for the functions that Daft has on them."""
    _quieten()
    import daft

    return daft.Series.from_arrow(arrow_of(values))


def _quieten() -> None:
    """Daft sends nothing anywhere and draws nothing; it looks at the environment when it is imported."""
    for name, value in {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}.items():
        os.environ[name] = value


def _daft(runner: Literal["native", "ray"], address: str | None) -> Any:
    """Daft, with the runner wanted."""
    _quieten()
    try:
        import daft
    except ImportError as error:
        raise MissingExtra("daft", "data", what_for="Preparing data") from error
    if _chosen and _chosen[0] != runner:
        what = f"this process already works with the runner {_chosen[0]!r}"
        raise ConfigError(what, where="--runner", fix="Start another process")
    if not _chosen:
        if runner == "ray":
            if find_spec("ray") is None:
                raise MissingExtra("ray", "ray", what_for="--runner ray")
            daft.set_runner_ray(address, noop_if_initialized=True)
        else:
            daft.set_runner_native()
        daft.set_execution_config(maintain_order=True)
        _chosen.append(runner)
    return daft


_chosen: list[str] = []
"""The runner of this process; Daft allows one."""
