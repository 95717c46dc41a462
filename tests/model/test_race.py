"""The fastest of several kernels, by a clock that the test turns."""

from __future__ import annotations

from ctypes import c_uint64
from math import inf

import pytest
import torch

from luthier.model.cublas import Kernel
from luthier.model.race import LAPS, Race


class Clock:
    """Events of a device that is some laps behind."""

    now = 0.0
    behind: float = 0
    """Events that the device has not reached yet, of those recorded last."""
    recorded = 0

    def __init__(self, enable_timing: bool):
        assert enable_timing
        self.at, self.number = 0.0, 0

    def record(self) -> None:
        Clock.recorded += 1
        self.at, self.number = Clock.now, Clock.recorded

    def query(self) -> bool:
        return self.number <= Clock.recorded - Clock.behind

    def elapsed_time(self, end: Clock) -> float:
        return end.at - self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(Clock, "now", 0.0)
    monkeypatch.setattr(Clock, "behind", 0)
    monkeypatch.setattr(Clock, "recorded", 0)
    return Clock


def run(race: Race, clock: type[Clock], microseconds: dict[int, float], calls: int, tokens: int = 1000) -> None:
    """microseconds: for each token"""
    for _ in range(calls):
        lap = race.start(tokens)
        clock.now += microseconds[id(race.turn)] * tokens / 1000
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
    times = {id(None): 1.0, id(slow): 0.98, id(fast): 0.9}
    run(race, clock, times, 10, tokens=1200)
    run(race, clock, times, 3 * LAPS - 10)  # shorter batches take less time and prove nothing
    assert not race.decided
    clock.behind = inf
    run(race, clock, times, 2)
    assert not race.decided and race.turn is None, "while the device is behind, PyTorch computes"
    clock.behind = 0
    run(race, clock, times, 1)
    assert race.decided and race.turn is fast
    run(race, clock, times, 5)
    assert race.turn is fast


def test_a_hopeless_kernel_has_three_turns(clock: type[Clock]) -> None:
    hopeless, fast = kernels(1, 2)
    race = entered(hopeless, fast)
    times = {id(None): 1.0, id(hopeless): 1.2, id(fast): 0.95}
    run(race, clock, times, 3 * 3)
    before = clock.now
    run(race, clock, times, 2 * (LAPS - 3))
    assert clock.now - before == pytest.approx((LAPS - 3) * 1.95)
    run(race, clock, times, 1)
    assert race.decided and race.turn is fast


def test_a_hopeless_kernel_is_known_while_the_device_is_behind(clock: type[Clock]) -> None:
    hopeless, fast = kernels(1, 2)
    race = entered(hopeless, fast)
    times = {id(None): 1.0, id(hopeless): 1.2, id(fast): 0.95}
    run(race, clock, times, 4 * 3)
    clock.behind = 2  # events: a lap
    before = clock.now
    run(race, clock, times, 2)
    assert clock.now - before == pytest.approx(1.95)


def test_long_products_are_decided_after_a_few_turns(clock: type[Clock]) -> None:
    hopeless, other, fast = kernels(1, 2, 3)
    race = entered(hopeless, other, fast)
    times = {id(None): 10.0, id(hopeless): 12.0, id(other): 9.9, id(fast): 9.5}
    run(race, clock, times, 4 + 3)
    assert not race.decided
    run(race, clock, times, 1)
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
    run(race, clock, {id(None): 1.0, id(other): 0.98}, 2 * LAPS + 1)
    assert race.decided and race.turn is None, "its power is paid for by what comes after"


def test_where_no_kernel_agrees_nothing_is_timed() -> None:
    race = entered()
    assert race.decided and race.turn is None and race.start(4096) is None
