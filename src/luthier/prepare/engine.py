"""Running work on chunks through Daft: in this process, in several, or on a Ray cluster, with one result.

The only module that knows Daft.  Chunks go in and parcels come out in order; what is under way at a time is bounded
by the number of workers, so the size of an input does not matter.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Literal

from luthier.base.errors import ConfigError, DoesNotFit, MissingExtra
from luthier.prepare.parcel import Parcel

SMALL_BYTES = 24 * 2**20
"""Below this, starting processes takes longer than the work."""
Call = Callable[[Any], Parcel]


class Engine:
    """Where the work is done.  Use as a context, which ends the processes that were started.

    Daft keeps the order and bounds what is under way.  Its own worker processes would start anew for every pass and
    are not waited for when Python ends, so under the native runner its threads hand the work to a pool that lives as
    long as the engine.
    """

    def __init__(
        self, runner: Literal["native", "ray"] = "native", workers: int | None = None, ray_address: str | None = None
    ):
        self._runner: Literal["native", "ray"] = runner
        self._workers, self._ray_address = workers, ray_address
        self._pool: int | None = None

    def run(self, work: Call, tasks: Sequence[object], size: int) -> Iterator[Parcel]:
        """`work` of every task, in the order of the tasks.

        Args:
            size: about how many bytes are read in all; little is not worth other processes.

        Raises:
            DoesNotFit: a process was ended from outside, as the system does when memory runs out.
        """
        if not tasks:
            return
        daft = _daft(self._runner, self._ray_address)
        many = min(self._many(size), len(tasks))
        call = work
        if self._runner == "native" and many > 1:
            call = partial(_hand_over, self._pool_of(many), work)

        @daft.cls(use_process=False, max_concurrency=many)
        class Worker:
            def __init__(self) -> None:
                self.call = call

            @daft.method.batch(return_dtype=daft.DataType.python(), batch_size=1)
            def __call__(self, tasks: Any) -> list[Parcel]:
                return [self.call(task) for task in tasks.to_pylist()]

        frame = daft.from_pydict({"task": list(tasks)}).into_batches(1)
        frame = frame.select(Worker()(frame["task"]).alias("parcel"))
        try:
            for row in frame.iter_rows(results_buffer_size=many):
                yield row["parcel"]
        except Exception as error:
            if isinstance(error.__cause__, BrokenProcessPool):
                fix = "Most likely memory ran out: use fewer --workers, or a smaller --max_row_bytes"
                raise DoesNotFit("a worker process was ended from outside", fix=fix) from error
            raise

    def _many(self, size: int) -> int:
        """How many chunks are worked on at a time."""
        if self._workers is not None:
            return self._workers
        if self._runner == "native" and size <= SMALL_BYTES:
            return 1
        return os.cpu_count() or 1

    def _pool_of(self, many: int) -> int:
        if self._pool is None:
            # A forked child would inherit locks that Daft's threads hold.
            context = multiprocessing.get_context("spawn")
            self._pool = max(_pools, default=0) + 1
            _pools[self._pool] = ProcessPoolExecutor(many, mp_context=context, initializer=_ignore_interrupts)
        return self._pool

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            _pools.pop(self._pool).shutdown(wait=True, cancel_futures=True)
            self._pool = None


_pools: dict[int, ProcessPoolExecutor] = {}
"""Pools by number: Daft wants to be able to copy what it calls, and a pool cannot be."""


def _hand_over(pool: int, work: Call, task: object) -> Parcel:
    return _pools[pool].submit(_apart, work, task).result()


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the first one decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _apart(work: Call, task: object) -> Parcel:
    """Work in a process of the pool.  Rows hold no cycles, so looking for them would only take time."""
    gc.disable()
    return work(task)


def series(values: Sequence[str] | Sequence[bytes] | Sequence[int]) -> Any:
    """Values as a Daft series, for the functions that Daft has on them."""
    _quieten()
    import daft

    return daft.Series.from_pylist(list(values))


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
            try:
                import ray  # noqa: F401  # pyright: ignore[reportUnusedImport]
            except ImportError as error:
                raise MissingExtra("ray", "ray", what_for="--runner ray") from error
            daft.set_runner_ray(address, noop_if_initialized=True)
        else:
            daft.set_runner_native()
        daft.set_execution_config(maintain_order=True)
        _chosen.append(runner)
    return daft


_chosen: list[str] = []
"""The runner of this process; Daft allows one."""
