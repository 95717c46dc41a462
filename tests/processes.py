"""Real `luthier` processes, forked from this one so that each starts in milliseconds."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import peft
import transformers.models.qwen2.modeling_qwen2
from ranks import places
from saved import hashes

import luthier.cli.app
import luthier.cli.train
import luthier.run.train
from luthier.engine.checkpoint import Checkpoints

LOADED = (matplotlib.backends.backend_agg, peft, transformers.models.qwen2.modeling_qwen2, luthier.run.train)
"""What every child needs, imported once before it is forked."""


@dataclass
class Child:
    """A running `luthier` command."""

    pid: int
    output: Path

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit code, or minus the signal that killed it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still running after {timeout} s: {self.said()[-2000:]}")

    def wait_for(self, text: str) -> None:
        """Until it has said `text`."""
        self.wait_until(lambda: text in self.said())

    def wait_until(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Until something it does is seen."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.said()[-2000:]
            time.sleep(0.002)

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        """Everything on stdout and stderr so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")


def fork(words: list[str], output: Path, before: Callable[[], object] | None = None, stdin: str = "") -> Child:
    """Run `luthier words` in a process of its own; `before` runs in it first."""
    output.touch()
    with warnings.catch_warnings():
        # Python 3.12 warns about forking beside threads; this process runs none that hold a lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return Child(pid, output)
    code = 70
    try:
        os.setsid()
        # A new process hears signals as Python sets them up, whatever earlier tests of this one have left behind.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        handle = os.open(output, os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.stdin = io.StringIO(stdin)
        if before is not None:
            before()
        code = luthier.cli.app.main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Job:
    """One command that trains a tiny model on chats, on and on with different flags."""

    def __init__(self, folder: Path, model: Path, data: Path):
        self.folder, self.model, self.data = folder, model, data
        self.output_dir = folder / "out"
        self._count = 0

    def argv(self, command: str = "sft", **flags: Any) -> list[str]:
        """The command's words; a flag given as None is left out."""
        settings = {
            "model": self.model,
            "dataset": self.data,
            "output_dir": self.output_dir,
            "max_length": 64,
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "lora_dropout": 0.1 if flags.get("train_type", "lora") == "lora" else None,
            "save_steps": 2,
            "save_total_limit": 100,
            "logging_steps": 1,
            "report_to": "none",
            "data.cache_dir": self.folder / "cache",
            **flags,
        }
        words = [command]
        for name, value in settings.items():
            if value is not None:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words

    def start(self, before: Callable[[], object] | None = None, **flags: Any) -> Child:
        """Fork a process that runs the command; `before` runs in it first."""
        return self.begin(self.argv(**flags), before)

    def begin(self, words: list[str], before: Callable[[], object] | None = None, stdin: str = "") -> Child:
        """Fork a process that runs any command."""
        self._count += 1
        return fork(words, self.folder / f"output-{self._count}.txt", before, stdin)

    def call(self, *words: object, expect: int = 0, stdin: str = "") -> str:
        """Run any command to its end; returns what was said."""
        return _ended(self.begin([str(word) for word in words], stdin=stdin), expect)

    def start_ranks(self, count: int, before: Callable[[], object] | None = None, **flags: Any) -> list[Child]:
        """Fork the processes that torchrun would start, with their share of the same step of 4 samples."""
        flags = {"gradient_accumulation_steps": 4 // count, "per_device_train_batch_size": 1, **flags}

        def join(place: dict[str, str]) -> None:
            os.environ.update(place)
            if before is not None:
                before()

        return [self.start(lambda place=place: join(place), **flags) for place in places(count)]

    def run_ranks(
        self, count: int, before: Callable[[], object] | None = None, *, expect: int = 0, **flags: Any
    ) -> str:
        """Run several processes to their end; returns what the leading one said."""
        children = self.start_ranks(count, before, **flags)
        return [_ended(child, expect) for child in children][0]  # noqa: RUF015 (each is waited for)

    def run(self, before: Callable[[], object] | None = None, *, expect: int = 0, **flags: Any) -> str:
        """Run to the end; returns what was said."""
        return _ended(self.start(before, **flags), expect)

    def runs(self) -> list[Path]:
        """Run directories, oldest first."""
        return sorted(self.output_dir.glob("v*"), key=lambda path: int(path.name.split("-")[0][1:]))

    def checkpoints(self) -> Checkpoints:
        """Those of the newest run."""
        return Checkpoints(self.runs()[-1] / "checkpoints", None)

    def final(self) -> tuple[str, str]:
        """sha256 of the trained weights and of the optimizer in the newest run's last checkpoint."""
        latest = self.checkpoints().named("LATEST")
        assert latest is not None
        return hashes(latest)

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Rows of a file of the newest run."""
        return [json.loads(line) for line in (self.runs()[-1] / name).read_text().splitlines()]

    def losses(self) -> dict[int, float]:
        """Logged loss of each step."""
        return {row["step"]: row["loss"] for row in self.rows() if "loss" in row}


def _ended(child: Child, expect: int) -> str:
    code = child.wait()
    assert code == expect, f"exit {code}, expected {expect}:\n{child.said()[-4000:]}"
    return child.said()
