"""R9, R14, R15, R16: bad numbers and full disks while training."""

from __future__ import annotations

import errno
import os
from typing import Any

from saved import hashes

from luthier.engine.objective import Terms

ONE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
"""One micro-batch makes a step."""


def poison(steps: range, value: float) -> None:
    """Multiply the loss of some 1-based steps by `value`."""
    from luthier.objectives.language import Language

    real, count = Language.sums, 0

    def sums(self: Any, model: Any, batch: Any) -> Terms:
        nonlocal count
        count += 1
        terms = real(self, model, batch)
        if count in steps:
            return Terms({name: loss * value for name, loss in terms.losses.items()}, terms.metrics)
        return terms

    Language.sums = sums


def kinds(job: Any) -> list[str]:
    return [row["data"].get("event") for row in job.rows("events.jsonl")]


def test_a_step_that_is_not_a_number_changes_nothing(job: Any):
    job.run(lambda: poison(range(7, 8), float("nan")), save_steps=1, **ONE)
    assert kinds(job).count("skipped_step") == 1
    folder = job.runs()[-1] / "checkpoints"
    weights = {int(path.name[-8:]): hashes(path) for path in folder.glob("step-*")}
    assert weights[5] != weights[6] != weights[8]
    assert weights.get(7, weights[6]) == weights[6]


def test_five_in_a_row_go_back_once_and_then_give_up(job: Any):
    said = job.run(lambda: poison(range(4, 1000), float("inf")), expect=1, max_steps=20, save_steps=2, **ONE)
    events = kinds(job)
    assert events.count("rolled_back") == 1
    assert "not finite" in said and "non_finite_loss" in said
    assert job.checkpoints().named("LATEST") == job.checkpoints().path(2)


def test_five_in_a_row_that_pass_are_survived(job: Any):
    job.run(lambda: poison(range(4, 9), float("nan")), max_steps=8, save_steps=2, **ONE)
    assert kinds(job).count("rolled_back") == 1
    assert job.checkpoints().named("LATEST") == job.checkpoints().path(8)


def test_a_loss_that_stands_out_is_flagged_with_its_samples(job: Any):
    job.run(lambda: poison(range(30, 31), 100.0), max_steps=32, save_steps=100, **ONE)
    spikes = [row for row in job.rows("events.jsonl") if row["data"].get("event") == "loss_spike"]
    assert [row["data"]["step"] for row in spikes] == [30]
    assert len(spikes[0]["data"]["samples"]) == 4


def fill_the_disk(saves: range) -> None:
    """Some 1-based checkpoint saves meet a full disk while sealing."""
    from luthier.base import sealed

    real, count = sealed.seal, 0

    def seal(folder: Any, known: Any) -> None:
        nonlocal count
        count += 1
        if count in saves:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(folder, known)

    sealed.seal = seal


def test_a_full_disk_in_the_middle_does_not_stop_training(job: Any):
    said = job.run(lambda: fill_the_disk(range(2, 3)), save_total_limit=1)
    assert "the disk is full" in said
    assert "disk_full" in kinds(job)
    assert job.checkpoints().all() == [job.checkpoints().path(8)]


def test_a_full_disk_at_the_end_is_an_error_and_the_last_good_checkpoint_stays(job: Any):
    said = job.run(lambda: fill_the_disk(range(2, 100)), expect=1, save_total_limit=1)
    assert "disk_full" in said
    assert job.checkpoints().all() == [job.checkpoints().path(2)] == [job.checkpoints().named("LATEST")]
    assert not list(job.output_dir.glob("v*/checkpoints/.staging*"))
