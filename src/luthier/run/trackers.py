"""Experiment trackers behind one small door, none of which can hurt a run.

An adapter says how one tracker is started, fed and closed.  `Background` runs an adapter on a thread of its own behind
a bounded queue: a tracker that is missing, refuses, raises or hangs costs one warning and its own curves, and
metrics.jsonl has every number anyway.
"""

from __future__ import annotations

import hashlib
import netrc
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from luthier.base.secrets import SECRET_NAME, redact

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Scalar = None | bool | int | float | str


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """A config tree as dotted names and plain values, secrets hidden: what trackers show as hyperparameters."""
    flat: dict[str, Scalar] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif SECRET_NAME.search(name):
            flat[name] = "***"
        elif value is None or isinstance(value, bool | int | float):
            flat[name] = value
        else:
            flat[name] = redact(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return flat


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told when it starts."""

    project: str
    name: str
    folder: Path
    """The run directory."""
    settings: Mapping[str, Scalar]
    resumed_step: int = 0
    """Values after this step, left by an interrupted run, are to be forgotten."""

    @property
    def id(self) -> str:
        """The same for every resumption of one run directory."""
        return hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]


class Tracker(Protocol):
    """One tracker.  Every method may raise anything."""

    def start(self, run: TrackedRun) -> None:
        """Import the package and open the run."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send values such as `train/loss` at an optimizer step."""
        ...

    def finish(self) -> None:
        """Flush and close."""
        ...


class TensorBoard:
    """Event files under tensorboard/ of the run directory."""

    _writer: SummaryWriter

    def start(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = run.resumed_step + 1 if run.resumed_step else None
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge, flush_secs=30)
        rows = "\n".join(f"| {name} | {value} |" for name, value in run.settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases.  Never asks for a login: without a key it records offline."""

    _wandb: ModuleType

    def start(self, run: TrackedRun) -> None:
        self._wandb = import_module("wandb")
        self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.project),
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            mode=os.environ.get("WANDB_MODE", "online" if _wandb_login() else "offline"),
            settings=self._wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._wandb.log(dict(values), step=step)

    def finish(self) -> None:
        self._wandb.finish()


def _wandb_login() -> bool:
    """Whether a key is known.  `wandb.init` would ask for one on the terminal, in the middle of training."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return "WANDB_API_KEY" in os.environ or netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


class Swanlab:
    """SwanLab.  Never asks for a login: without a key it records on this machine.  A resumed run is a new entry."""

    _swanlab: ModuleType

    def start(self, run: TrackedRun) -> None:
        self._swanlab = import_module("swanlab")
        known = "cloud" if os.environ.get("SWANLAB_API_KEY") else "offline"
        self._swanlab.init(
            project=run.project,
            experiment_name=run.name,
            config=dict(run.settings),
            logdir=str(run.folder / "swanlab"),
            mode=os.environ.get("SWANLAB_MODE", known),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._swanlab.log(dict(values), step=step)

    def finish(self) -> None:
        self._swanlab.finish()


class Trackio:
    """Trackio, which keeps its own store on this machine."""

    _trackio: ModuleType

    def start(self, run: TrackedRun) -> None:
        self._trackio = import_module("trackio")
        self._trackio.init(project=run.project, name=run.name, config=dict(run.settings), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def finish(self) -> None:
        self._trackio.finish()


class Mlflow:
    """MLflow, at MLFLOW_TRACKING_URI or its own default.  A resumed run is a new entry."""

    _mlflow: ModuleType

    def start(self, run: TrackedRun) -> None:
        self._mlflow = import_module("mlflow")
        self._mlflow.set_experiment(run.project)
        self._mlflow.start_run(run_name=run.name)
        self._mlflow.log_params({name: str(value)[:500] for name, value in run.settings.items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def finish(self) -> None:
        self._mlflow.end_run()


ADAPTERS: Mapping[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "swanlab": Swanlab,
    "trackio": Trackio,
    "mlflow": Mlflow,
}


class Background:
    """A tracker on its own thread.  No call here raises, and only `finish` waits, for a bounded time.

    Everything the adapter does happens on that one thread, because some trackers keep their run in thread-local state.

    Args:
        name: what the user calls the tracker.
        tracker: the adapter.
        warn: told once, from the caller's thread, when the tracker fails.
        capacity: rows held while the tracker is slow; further rows are dropped and counted.
    """

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None], *, capacity: int = 1024):
        self.name = name
        self._tracker = tracker
        self._warn = warn
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(capacity)
        self._failure: str | None = None
        self._warned = False
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)

    def start(self, run: TrackedRun) -> None:
        """Begin, without waiting for the tracker."""
        self._queue.put_nowait(lambda: self._tracker.start(run))
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over values, or drop them when the tracker is stuck."""
        if self._failure is None:
            try:
                self._queue.put_nowait(lambda: self._tracker.log(step, values))
            except queue.Full:
                self._dropped += 1
        self._tell()

    def finish(self, timeout: float = 20.0) -> None:
        """Wait at most `timeout` seconds for the tracker to take what is queued and close."""
        try:
            self._queue.put_nowait(self._tracker.finish)
            self._queue.put_nowait(None)
            self._thread.join(timeout)
        except queue.Full:
            self._dropped += 1
        if self._thread.is_alive():
            self._failure = self._failure or f"no answer within {timeout:.0f} s"
        self._tell()

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._failure is not None:
                continue
            try:
                call()
            except ImportError as error:
                self._failure = f"{error} (pip install 'luthier[track]')"
            except (Exception, SystemExit) as error:  # third-party code: whatever goes wrong, training goes on
                self._failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def _tell(self) -> None:
        failure = self._failure or (f"too slow, {self._dropped} rows dropped" if self._dropped else None)
        if failure is not None and not self._warned:
            self._warned = True
            self._warn(f"{self.name} does not work and is left out: {redact(failure)}. metrics.jsonl has every number")


def start_trackers(names: Sequence[str], run: TrackedRun, warn: Callable[[str], None]) -> list[Background]:
    """Start the trackers a user asked for; `none` among the names starts none.  Never raises, never waits."""
    trackers = [] if "none" in names else [Background(name, ADAPTERS[name](), warn) for name in dict.fromkeys(names)]
    for tracker in trackers:
        tracker.start(run)
    return trackers
