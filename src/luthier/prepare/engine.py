"""Running work on chunks through Daft: in this process, in several, or on a Ray cluster, with one result.

The only module that knows Daft.  Chunks go in and parcels come out in order; what is under way at a time is bounded
by the number of workers, so the size of an input does not matter.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from luthier.base.errors import ConfigError, MissingExtra
from luthier.prepare.parcel import Parcel

SMALL_BYTES = 24 * 2**20
"""Below this, starting processes takes longer than the work."""
_LEAVING = 5.0  # seconds a worker process has to end


@dataclass(frozen=True)
class Engine:
    """Where the work is done."""

    runner: Literal["native", "ray"] = "native"
    workers: int | None = None
    ray_address: str | None = None

    def run(self, work: Callable[[Any], Parcel], tasks: Sequence[object], size: int) -> Iterator[Parcel]:
        """`work` of every task, in the order of the tasks.

        Args:
            size: about how many bytes are read in all; little is not worth other processes.
        """
        if not tasks:
            return
        daft = _daft(self.runner, self.ray_address)
        workers = self.workers or os.cpu_count() or 1
        apart = self.runner == "native" and workers > 1 and size > SMALL_BYTES and len(tasks) > 1
        many = workers if apart else None if self.runner == "ray" else 1
        if self.runner == "ray" and self.workers:
            many = self.workers

        @daft.cls(use_process=apart, max_concurrency=min(many or 1, len(tasks)))
        class Worker:
            def __init__(self) -> None:
                self.work = work

            @daft.method.batch(return_dtype=daft.DataType.python(), batch_size=1)
            def __call__(self, tasks: Any) -> list[Parcel]:
                return [self.work(task) for task in tasks.to_pylist()]

        frame = daft.from_pydict({"task": list(tasks)}).into_batches(1)
        frame = frame.select(Worker()(frame["task"]).alias("parcel"))
        try:
            for row in frame.iter_rows(results_buffer_size=2):
                yield row["parcel"]
        finally:
            del frame
            if apart:
                _wait_for_workers()


def _daft(runner: Literal["native", "ray"], address: str | None) -> Any:
    """Daft, with the runner wanted; it sends nothing anywhere and draws nothing."""
    for name, value in {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}.items():
        os.environ[name] = value
    try:
        import daft
    except ImportError as error:
        raise MissingExtra("daft", "data", what_for="Preparing data") from error
    current = daft.get_or_infer_runner_type() if _chosen else None
    if current is not None and current != runner:
        raise ConfigError(
            f"this process already works with the runner {current!r}", where="--runner", fix="Start another process"
        )
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


def _wait_for_workers() -> None:
    """Let Daft's worker processes end: a process that exits while they do aborts now and then."""
    gc.collect()
    until = time.monotonic() + _LEAVING
    while time.monotonic() < until:
        children = psutil.Process().children()
        if not any("daft.execution.udf_worker" in _command(child) for child in children):
            break
        time.sleep(0.02)
    time.sleep(0.05)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
