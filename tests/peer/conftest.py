"""What tests beside other engines have in common: their program, and the same model in our own engine."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from luthier.generate.continuous import Continuous
from luthier.model.config import ModelConfig
from luthier.run.opening import Opened, open_model


@pytest.fixture
def program(request: pytest.FixtureRequest) -> str:
    """The program that the variable named by the module's PROGRAM leads to; the test is skipped without it."""
    name = request.module.PROGRAM
    found = os.environ.get(name)
    if found is None:
        pytest.skip(f"{name} names no program")
    return found


@dataclass(frozen=True)
class Ours:
    """The bundled model in float32, in this process."""

    config: ModelConfig
    opened: Opened
    generator: Continuous


@pytest.fixture
def ours(program: str, nano_dir: Path) -> Generator[Ours]:
    """The bundled model as our engine runs it, once there is something to compare it with."""
    config = ModelConfig(path=str(nano_dir), dtype="float32")
    opened = open_model(config, "cpu", print)
    generator = Continuous(opened.model, stop_ids=opened.manner.renderer.stop_ids)
    yield Ours(config, opened, generator)
    generator.close()
