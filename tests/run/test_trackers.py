"""Trackers: what they are given, and that a broken one costs one warning and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luthier.base.secrets import redact
from luthier.run.trackers import ADAPTERS, Background, TrackedRun, flatten, start_trackers


def tracked(folder: Path, resumed_step: int = 0) -> TrackedRun:
    return TrackedRun("luthier", "v1", folder, {"optim.learning_rate": 1e-4}, resumed_step)


class Recording:
    def __init__(self) -> None:
        self.calls: list[object] = []

    def start(self, run: TrackedRun) -> None:
        self.calls.append("start")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append((step, dict(values)))

    def finish(self) -> None:
        self.calls.append("finish")


class Broken(Recording):
    """Fails at the call named by `at`, and at every later one."""

    def __init__(self, at: str, error: BaseException):
        super().__init__()
        self.at, self.error = at, error

    def _maybe(self, name: str) -> None:
        if name == self.at or self.calls:
            self.calls.append(name)
            raise self.error

    def start(self, run: TrackedRun) -> None:
        self._maybe("start")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._maybe("log")

    def finish(self) -> None:
        self._maybe("finish")


class Hanging(Recording):
    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def start(self, run: TrackedRun) -> None:
        self.release.wait(30)


def test_calls_arrive_in_order(tmp_path: Path) -> None:
    recording = Recording()
    warnings: list[str] = []
    tracker = Background("x", recording, warnings.append)
    tracker.start(tracked(tmp_path))
    for step in range(3):
        tracker.log(step, {"train/loss": 1.0 / (step + 1)})
    tracker.finish()
    assert recording.calls == [
        "start",
        (0, {"train/loss": 1.0}),
        (1, {"train/loss": 0.5}),
        (2, {"train/loss": 1.0 / 3}),
        "finish",
    ]
    assert warnings == []


@pytest.mark.parametrize("at", ["start", "log", "finish"])
@pytest.mark.parametrize(
    "error", [ImportError("No module named 'x'"), ConnectionError("hub unreachable"), SystemExit(1)], ids=type
)
def test_a_tracker_that_raises_costs_one_warning(tmp_path: Path, at: str, error: BaseException) -> None:
    warnings: list[str] = []
    broken = Broken(at, error)
    tracker = Background("x", broken, warnings.append)
    tracker.start(tracked(tmp_path))
    for step in range(20):
        tracker.log(step, {"train/loss": 1.0})
    tracker.finish()
    assert len(warnings) == 1
    assert warnings[0].startswith("x does not work and is left out")
    assert broken.calls == [at]  # left alone after its first failure


def test_a_hanging_tracker_neither_blocks_nor_grows(tmp_path: Path) -> None:
    warnings: list[str] = []
    hanging = Hanging()
    tracker = Background("x", hanging, warnings.append, capacity=8)
    began = time.monotonic()
    tracker.start(tracked(tmp_path))
    for step in range(1000):
        tracker.log(step, {"train/loss": 1.0})
    tracker.finish(timeout=0.2)
    assert time.monotonic() - began < 5
    hanging.release.set()
    assert len(warnings) == 1
    assert "too slow" in warnings[0]


def test_finish_does_not_wait_for_ever(tmp_path: Path) -> None:
    warnings: list[str] = []
    hanging = Hanging()
    tracker = Background("x", hanging, warnings.append)
    tracker.start(tracked(tmp_path))
    tracker.finish(timeout=0.1)
    hanging.release.set()
    assert "no answer within" in warnings[0]


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    warnings: list[str] = []
    (tracker,) = start_trackers(["wandb"], tracked(tmp_path), warnings.append)
    tracker.finish()
    assert "pip install 'luthier[track]'" in warnings[0]


def test_none_starts_nothing_and_every_name_has_an_adapter(tmp_path: Path) -> None:
    assert start_trackers(["none"], tracked(tmp_path), pytest.fail) == []
    assert set(ADAPTERS) == {"tensorboard", "wandb", "swanlab", "trackio", "mlflow"}


def test_tensorboard_receives_the_values_and_forgets_what_a_resume_overwrites(tmp_path: Path) -> None:
    for resumed_step, steps in ((0, (5, 10, 15)), (10, (15, 20))):
        (tracker,) = start_trackers(["tensorboard"], tracked(tmp_path, resumed_step), pytest.fail)
        for step in steps:
            tracker.log(step, {"train/loss": 100.0 / step + resumed_step})
        tracker.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("train/loss")] == [
        (5, 20.0),
        (10, 10.0),
        (15, 16.667),
        (20, 15.0),
    ]


def test_one_run_directory_has_one_id(tmp_path: Path) -> None:
    assert tracked(tmp_path).id == tracked(tmp_path, 7).id
    assert tracked(tmp_path).id != tracked(tmp_path / "other").id


def test_settings_are_flattened_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "very-secret-value")
    flat = flatten(
        {
            "optim": {"learning_rate": 1e-4, "name": "adamw"},
            "data": {"datasets": ["https://u:p@host/a.jsonl", "b#5"], "tokenize_workers": 2},
            "model": {"template_args": {"api_key": "abc", "note": "x very-secret-value"}},
            "seed": None,
        }
    )
    assert flat == {
        "optim.learning_rate": 1e-4,
        "optim.name": "adamw",
        "data.datasets": "https://***@host/a.jsonl, b#5",
        "data.tokenize_workers": 2,
        "model.template_args.api_key": "***",
        "model.template_args.note": "x ***",
        "seed": None,
    }


def test_known_token_shapes_are_hidden() -> None:
    assert redact("failed with hf_abcdefghijklmnopqrst") == "failed with ***"
    assert redact("a sk-ip and a ski-lift") == "a sk-ip and a ski-lift"
