"""A run whose checkpoints have no room on the disk says so before its first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def free(count: int) -> Callable[[], None]:
    """What makes every disk have so many bytes left."""

    def patch() -> None:
        shutil.disk_usage = lambda _: Usage(2 * count, count, count)  # pyright: ignore[reportAttributeAccessIssue]

    return patch


def one(job: Any) -> int:
    """Bytes of what a run goes on with."""
    job.run(max_steps=1)
    return sum((job.checkpoints().path(1) / f"{name}.safetensors").stat().st_size for name in ("trained", "optimizer"))


def test_without_room_for_one_checkpoint_nothing_is_trained(job: Any):
    size = one(job)
    run = job.start(free(size - 1))
    assert run.wait() == 1
    assert "[disk_full]" in run.said() and "a checkpoint of this training takes" in run.said()
    assert "--output_dir" in run.said() and not (job.runs()[-1] / "metrics.jsonl").exists()
    assert job.start(free(size)).wait() == 0


def test_checkpoints_that_do_not_all_have_room_are_told_and_training_goes_on(job: Any):
    size = one(job) + (job.checkpoints().path(1) / "adapter_model.safetensors").stat().st_size
    run = job.start(free(3 * size - 20_000), save_total_limit=2)  # headers differ a little
    assert run.wait() == 0
    assert "up to 3 checkpoints" in run.said() and "--save_total_limit 1" in run.said()
    for enough in (
        {"save_total_limit": 1},  # and the next, which is written before the old one goes
        {"save_total_limit": 2, "save_steps": 4},  # two in all
        {"save_strategy": "no", "save_steps": None},
    ):
        run = job.start(free(3 * size - 20_000), **enough)
        assert run.wait() == 0 and "side by side" not in run.said()


@pytest.mark.parametrize(
    "flags",
    [
        {"train_type": "lora"},
        {"train_type": "full", "ema_decay": 0.9, "optim": "adagrad"},
        {"train_type": "lisa", "learning_rate": 1e-3},
        {"train_type": "prompt"},
        {"train_type": "prefix"},
    ],
    ids=lambda flags: flags["train_type"],
)
def test_what_is_reckoned_with_is_what_is_written(job: Any, tmp_path: Path, flags: dict[str, Any]):
    def note() -> None:
        from luthier.run import diskroom

        reckon = diskroom.least_bytes

        def noted(model: Any, config: Any) -> int:
            found = reckon(model, config)
            (tmp_path / "reckoned").write_text(str(found))
            return found

        diskroom.least_bytes = noted

    job.run(note, max_steps=1, **{"lora_dropout": None, **flags})
    left_out = "adapter_model.safetensors", "method.safetensors"
    written = [file for file in job.checkpoints().path(1).glob("*.safetensors") if file.name not in left_out]
    assert int((tmp_path / "reckoned").read_text()) == sum(file.stat().st_size for file in written)
