"""Whole runs on a CUDA device through the command line, in bfloat16.

pytest -m gpu -n 0 -s tests/gpu
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import hashes

from luthier.cli.app import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
METHODS = {"lora": 1e-2, "full": 1e-3}
"""Learning rate of each."""


@pytest.fixture(autouse=True)
def _deterministic() -> Generator[None]:
    """Bit-identical repetition is promised with deterministic kernels only."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def train(words_of_a_run: Callable[..., tuple[list[str], Path]]) -> Callable[..., Path]:
    """Train ten steps and give the run directory."""

    def run(method: str, **flags: Any) -> Path:
        steps = {"max_steps": 10, "gradient_accumulation_steps": 4, "save_steps": 5}
        how = {"train_type": method, "learning_rate": METHODS[method], "torch_dtype": "bfloat16"}
        words, output = words_of_a_run(**steps, **{**how, **flags})
        torch.cuda.reset_peak_memory_stats()
        assert main(["sft", *words]) == 0
        return next(output.glob("v*"))

    return run


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def final(run: Path) -> tuple[str, str]:
    """sha256 of the trained weights and of the optimizer."""
    return hashes(run / "checkpoints" / "step-00000010")


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_recomputing_layers_changes_nothing(method: str, train: Callable[..., Path]) -> None:
    losses: list[list[float]] = []
    for checkpointing in ("true", "false"):
        run = train(method, gradient_checkpointing=checkpointing)
        found = [row for row in rows(run) if "loss" in row]
        losses.append([row["loss"] for row in found])
        memory = json.loads((run / "memory.json").read_text())["measured"]
        print(f"{method}, checkpointing {checkpointing}: {losses[-1][0]:.4f} -> {losses[-1][-1]:.4f}, {memory}")
        assert memory["gpu_allocated_peak_gib"] == pytest.approx(found[-1]["memory_gib"], abs=0.01)
    assert losses[0][-1] < losses[0][0] - 0.5
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_identical(method: str, train: Callable[..., Path]) -> None:
    straight = train(method)
    again = train(method)
    assert final(again) == final(straight)
    resumed = train(method, resume_from_checkpoint=straight / "checkpoints" / "step-00000005")
    assert final(resumed) == final(straight)
    assert [row["loss"] for row in rows(resumed)] == [row["loss"] for row in rows(straight)][5:]


@pytest.mark.parametrize("method", METHODS)
def test_the_usual_kernels_repeat_nearly(method: str, train: Callable[..., Path]) -> None:
    torch.use_deterministic_algorithms(False)
    first, second = train(method), train(method)
    print(
        f"{method}: without deterministic kernels {'identical' if final(first) == final(second) else 'not identical'}"
    )
    losses = [[row["loss"] for row in rows(run)] for run in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
