"""R9 and R19 over processes: one dies, or the leading one cannot write, while the others need it."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.base.sealed import verify

FULL = {"train_type": "full", "learning_rate": 1e-3}


@pytest.mark.parametrize("shard", ["none", "full"])
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_dies_the_other_says_so_and_the_run_can_be_resumed(job: Any, shard: str, victim: int):
    flags = {**FULL, "shard": shard, "save_steps": 1}
    processes = job.start_ranks(2, max_steps=2000, **flags)
    for process in processes[:1]:
        process.wait_for("Checkpoint step-00000003")
    processes[victim].kill(signal.SIGKILL)
    assert processes[victim].wait() == -signal.SIGKILL
    survivor = processes[1 - victim]
    began = time.monotonic()
    assert survivor.wait(timeout=30) == 1
    assert time.monotonic() - began < 10
    if victim == 1:  # only the leading process speaks
        said = survivor.said()
        assert "another process of this run is gone" in said and "peer_lost" in said and "bug in Luthier" not in said
    last = job.checkpoints().latest(lambda fault: pytest.fail(fault))
    steps = int(last.name.removeprefix("step-")) + 2
    job.run_ranks(2, resume_from_checkpoint="true", max_steps=steps, allow_change="train.max_steps", **flags)
    assert job.checkpoints().named("LATEST") == job.checkpoints().path(steps)


def test_a_process_that_dies_inside_a_layer_is_named_as_gone(job: Any):
    def die_in_a_layer() -> None:
        from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

        real, count = Qwen2MLP.forward, 0

        def forward(self: Any, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == 12 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *arguments)

        Qwen2MLP.forward = forward

    leading, _ = job.start_ranks(2, die_in_a_layer, shard="full", **FULL)
    assert leading.wait(timeout=30) == 1
    assert "another process of this run is gone" in leading.said() and "bug in Luthier" not in leading.said()


@pytest.mark.parametrize("name", ["model.safetensors", "trained.safetensors", "optimizer.safetensors"])
def test_a_disk_that_fills_up_in_the_middle_of_a_sharded_save_does_not_stop_training(job: Any, name: str):
    def fill() -> None:
        from luthier.engine import checkpoint
        from luthier.model import methods

        write, save, count = checkpoint.write_tensors, methods.save, 0

        def full_write(path: Path, tensors: Any, whole: Any) -> str:
            nonlocal count
            count += path.name == name
            if path.name == name and count == 2:
                whole(next(iter(tensors.values())))  # some of it is written
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(path, tensors, whole)

        def full_save(model: Any, folder: Path, whole: Any) -> None:
            nonlocal count
            count += name == "model.safetensors"
            if name == "model.safetensors" and count == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(model, folder, whole)

        checkpoint.write_tensors, methods.save = full_write, full_save

    said = job.run_ranks(2, fill, shard="full", save_total_limit=1, **FULL)
    assert "Checkpoint at step 4 failed" in said and "the disk is full" in said
    assert job.checkpoints().all() == [job.checkpoints().path(8)]
    assert verify(job.checkpoints().path(8)) is None
