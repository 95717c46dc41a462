"""R6, R7, R10, R12: killed at any instant, asked to stop, refused a place to write, two at once."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.base.sealed import verify


def test_killed_at_random_instants_it_always_resumes_and_ends_exact(job: Any, tmp_path: Path):
    flags: dict[str, Any] = {"max_steps": 150, "save_steps": 1, "save_total_limit": 3}
    job.run(**flags)
    straight = job.final()
    job.output_dir = tmp_path / "killed"
    chance = random.Random(0)
    in_save = 0
    for number in range(30):
        marker = tmp_path / f"there-{number}"
        place = ("start", "step", "save")[number % 3]
        child = job.start(lambda place=place, marker=marker: touch_at(place, marker), **flags, **resuming(job))
        child.wait_until(marker.exists)
        time.sleep(chance.uniform(0.0, {"start": 0.5, "step": 0.1, "save": 0.03}[place]))
        child.kill(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.said()[-2000:]
        in_save += bool(list(job.output_dir.glob("v*/checkpoints/.staging-0*")))
        for latest in job.output_dir.glob("v*/checkpoints/LATEST"):
            assert verify(latest.parent / latest.read_text().strip()) is None
    assert in_save >= 10, f"only {in_save} kills hit a save"
    job.run(**flags, **resuming(job))
    assert job.final() == straight


def resuming(job: Any) -> dict[str, str]:
    published = list(job.output_dir.glob("v*/checkpoints/step-*/MANIFEST.json"))
    return {"resume_from_checkpoint": "true"} if published else {}


def touch_at(place: str, marker: Path) -> None:
    """Say that the process has begun, or has made a step, or is in its third save, which takes its time."""
    from luthier.base import sealed
    from luthier.engine.trainer import Trainer

    sync, seal, advance = os.fsync, sealed.seal, Trainer._advance
    saves = 0

    def slow_seal(folder: Path, known: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 3:
            marker.touch()
            os.fsync = lambda handle: (time.sleep(0.004), sync(handle))[1]
        seal(folder, known)

    def marked_advance(self: Any, *arguments: Any) -> None:
        marker.touch()
        advance(self, *arguments)

    match place:
        case "start":
            marker.touch()
        case "step":
            Trainer._advance = marked_advance
        case _:
            sealed.seal = slow_seal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_finishes_the_step_saves_and_exits_75(job: Any, number: int):
    flags = {"max_steps": 40, "save_steps": 1000}
    job.run(**flags)
    straight = job.final()
    child = job.start(**flags)
    child.wait_for("step  5/40")
    child.kill(number)
    assert child.wait() == 75
    assert "--resume_from_checkpoint" in child.said()
    stopped = job.checkpoints().named("LATEST")
    assert stopped is not None and 5 <= int(stopped.name[-8:]) < 40
    report = (job.runs()[-1] / "report.md").read_text()
    assert "can be resumed" in report
    job.run(resume_from_checkpoint=job.runs()[-1], **flags)
    assert job.final() == straight
    assert sorted(job.losses()) == list(range(1, 41))


def slow(place: str) -> None:
    """Say when an evaluation, a save or the tokenising begins, and take a while for it."""
    from luthier.base import sealed
    from luthier.data import dataset
    from luthier.engine.trainer import Trainer

    owner: Any = {"_evaluate": Trainer, "seal": sealed, "encode_rows": dataset}[place]
    real = getattr(owner, place)

    def slowed(*arguments: Any, **named: Any) -> Any:
        os.write(1, b"it begins\n")
        # Tokenising is left at once when it is interrupted, so it may wait for however late the signal comes.
        time.sleep(20.0 if place == "encode_rows" else 0.5)
        return real(*arguments, **named)

    setattr(owner, place, slowed)


@pytest.mark.parametrize("place", ["_evaluate", "seal"])
def test_asked_while_evaluating_or_saving_it_stops_whole(job: Any, place: str):
    child = job.start(lambda: slow(place), split_dataset_ratio=0.2, max_steps=40)
    child.wait_for("it begins")
    child.kill(signal.SIGINT)
    assert child.wait() == 75
    latest = job.checkpoints().named("LATEST")
    assert latest is not None and verify(latest) is None


def test_interrupted_before_training_it_says_so_and_leaves_no_run(job: Any):
    child = job.start(lambda: slow("encode_rows"))
    child.wait_for("it begins")
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    assert child.said().splitlines()[-1] == "interrupted"
    assert job.runs() == []


def test_a_second_signal_leaves_within_two_seconds(job: Any):
    child = job.start(hang_in_step, max_steps=40)
    child.wait_for("hanging")
    child.kill(signal.SIGTERM)
    child.wait_for("SIGTERM: finishing this step")
    began = time.monotonic()
    child.kill(signal.SIGTERM)
    assert child.wait() == 75
    assert time.monotonic() - began < 2.0


def hang_in_step() -> None:
    from luthier.objectives.language import Language

    def hang(*arguments: object) -> None:
        os.write(1, b"hanging\n")
        while True:
            time.sleep(0.1)

    Language.sums = hang  # pyright: ignore[reportAttributeAccessIssue]


def test_two_trainers_do_not_share_an_output_directory(job: Any):
    child = job.start(hang_in_step)
    child.wait_for("hanging")
    try:
        said = job.run(expect=2)
        assert f"process {child.pid}" in said
    finally:
        child.kill(signal.SIGKILL)
        child.wait()
    job.run()  # the dead one does not block


@pytest.mark.parametrize("place", ["file", "proc"])
def test_an_output_directory_that_cannot_be_written_is_named_before_training(job: Any, tmp_path: Path, place: str):
    (tmp_path / "file").write_text("")
    job.output_dir = tmp_path / "file" / "out" if place == "file" else Path("/proc/luthier/out")
    said = job.run(expect=2)
    assert str(job.output_dir) in said and "--output_dir" in said and "step" not in said
