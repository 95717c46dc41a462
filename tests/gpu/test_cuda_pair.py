"""Two CUDA devices: data-parallel and sharded runs take the trajectory of one device.

pytest -m gpu -n 0 -s tests/gpu/test_cuda_pair.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.engine.checkpoint import read

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"train_type": "lora", "learning_rate": 1e-2},
    "full": {"train_type": "full", "learning_rate": 1e-3},
}
STEPS = 12


@pytest.fixture
def train(words_of_a_run: Callable[..., tuple[list[str], Path]]) -> Callable[..., Path]:
    """Train on a number of devices and give the run directory; a step has eight samples on any number."""

    def run(devices: int, method: str, together: int = 2, **flags: Any) -> Path:
        steps = {"max_steps": STEPS, "gradient_accumulation_steps": 8 // together // devices, "save_steps": 6}
        words, output = words_of_a_run(**steps, **METHODS[method], per_device_train_batch_size=together, **flags)
        environment = {**os.environ, "NPROC_PER_NODE": str(devices)}
        command = [sys.executable, "-m", "luthier", "sft", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return next(output.glob("v*"))

    return run


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "loss", "weight"), [("float32", 1e-5, 1e-4), ("bfloat16", 2e-2, 5e-2)])
def test_two_devices_take_the_trajectory_of_one(
    method: str, dtype: str, loss: float, weight: float, train: Callable[..., Path]
) -> None:
    alone = train(1, method, torch_dtype=dtype)
    ends: dict[str, Path] = {"parallel": train(2, method, torch_dtype=dtype)}
    ends["sharded"] = train(2, method, torch_dtype=dtype, fsdp="full_shard")
    middle = ends["sharded"] / "checkpoints" / "step-00000006"
    ends["resumed on one"] = train(1, method, torch_dtype=dtype, resume_from_checkpoint=middle)
    assert losses(alone)[STEPS] < losses(alone)[1] - 0.5
    if dtype == "bfloat16":
        # Rounding alone drives such runs apart: one device, whose micro-batches are cut otherwise, tells how far.
        cuts = [apart(train(1, method, together, torch_dtype=dtype), alone) for together in (1, 4)]
        loss, weight = (max(bound, 2 * max(seen)) for bound, *seen in zip((loss, weight), *cuts, strict=True))
    for name, run in ends.items():
        found = apart(run, alone)
        print(f"\n{method}, {dtype}, {name}: losses {found[0]:.2e} apart ({loss:.2e}), weights {found[1]:.2e}")
        assert found[0] < loss and found[1] < weight


def apart(run: Path, other: Path) -> tuple[float, float]:
    """How far two runs are: the most that a step's losses differ, and the weights at the end against their norm."""
    found, theirs = losses(run), losses(other)
    distance = float((flat(run) - flat(other)).norm() / flat(other).norm())
    return max(abs(found[step] - theirs[step]) for step in found), distance


def flat(run: Path) -> torch.Tensor:
    """The trained weights after the last step, in one row."""
    _, tensors = read(run / "checkpoints" / f"step-{STEPS:08}")
    return torch.cat([weight.flatten().float() for _, weight in sorted(tensors.trained.items())])
