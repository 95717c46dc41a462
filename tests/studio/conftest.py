"""A Studio in a process of its own, as a person starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Served:
    """A Studio that listens."""

    url: str
    root: Path
    pid: int


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """A Studio over an empty folder."""
    root = tmp_path_factory.mktemp("studio")
    words = [sys.executable, "-m", "luthier", "studio", "--port", "0", "--root", str(root), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "LUTHIER_API_KEY"}
    # The pages behave otherwise when they believe to be tested.
    environment.pop("PYTEST_CURRENT_TEST", None)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        assert process.stdout is not None
        yield Served(json.loads(process.stdout.readline())["url"], root, process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
