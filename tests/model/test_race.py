"""The fastest of several kernels, by a clock that the test turns."""

from __future__ import annotations

from ctypes import c_uint64

import pytest
import torch

from luthier.model.cublas import Kernel
from luthier.model.race import LAPS, Race


class Clock:
    """Events of a device that is some laps behind."""

    now = 0.0
    arrived = True

    def __init__(self, enable_timing: bool):
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = Clock.now

    def query(self) -> bool:
        return Clock.arrived

    def elapsed_time(self, end: Clock) -> float:
        return end.at - self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(Clock, "now", 0.0)
    monkeypatch.setattr(Clock, "arrived", True)
    return Clock


def run(race: Race, clock: type[Clock], seconds: dict[int, float], calls: int, tokens: int = 4096) -> None:
    for _ in range(calls):
        lap = race.start(tokens)
        clock.now += seconds[id(race.turn)] * tokens
        if lap is not None:
            lap.end.record()


def kernels(*names: int) -> list[Kernel]:
    return [(c_uint64 * 8)(name) for name in names]


def entered(*names: Kernel) -> Race:
    race = Race()
    race.enter(names)
    return race


def test_the_fastest_kernel_wins(clock: type[Clock]) -> None:
    slow, fast = kernels(1, 2)
    race = entered(slow, fast)
    seconds = {id(None): 1.0, id(slow): 0.98, id(fast): 0.9}
    run(race, clock, seconds, 10, tokens=5000)
    run(race, clock, seconds, 3 * LAPS - 10)  # shorter batches take less time and prove nothing
    assert not race.decided
    clock.arrived = False
    run(race, clock, seconds, 2)
    assert not race.decided and race.turn is None, "while the device is behind, PyTorch computes"
    clock.arrived = True
    run(race, clock, seconds, 1)
    assert race.decided and race.turn is fast
    run(race, clock, seconds, 5)
    assert race.turn is fast


def test_a_hopeless_kernel_has_three_turns(clock: type[Clock]) -> None:
    hopeless, fast = kernels(1, 2)
    race = entered(hopeless, fast)
    seconds = {id(None): 1.0, id(hopeless): 1.2, id(fast): 0.95}
    run(race, clock, seconds, 3 * 3)
    before = clock.now
    run(race, clock, seconds, 2 * (LAPS - 3))
    assert clock.now - before == pytest.approx(4096 * (LAPS - 3) * 1.95)
    run(race, clock, seconds, 1)
    assert race.decided and race.turn is fast


def test_whoever_was_slow_once_is_not_hopeless_for_that(clock: type[Clock]) -> None:
    (other,) = kernels(1)
    race = entered(other)
    run(race, clock, {id(None): 1.0, id(other): 5.0}, 2)
    run(race, clock, {id(None): 1.0, id(other): 0.9}, 2 * (LAPS - 1) + 1)
    assert race.decided and race.turn is other


def test_torch_keeps_what_nobody_does_clearly_faster(clock: type[Clock]) -> None:
    (other,) = kernels(1)
    race = entered(other)
    run(race, clock, {id(None): 1.0, id(other): 0.998}, 2 * LAPS + 1)
    assert race.decided and race.turn is None


def test_where_no_kernel_agrees_nothing_is_timed() -> None:
    race = entered()
    assert race.decided and race.turn is None and race.start(4096) is None
