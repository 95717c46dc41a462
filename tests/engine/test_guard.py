"""What is said of steps whose numbers cannot be trusted."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.base.errors import RunError
from luthier.engine.guard import Guard, Outliers
from luthier.engine.step import StepResult


class Heard:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def event(self, name: str, message: str, **facts: Any) -> None:
        self.events.append((name, message))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the guard told a watcher of {name}")


def result(loss: float, grad_norm: float) -> StepResult:
    return StepResult(loss=loss, means={}, grad_norm=grad_norm, trained=1.0, tokens=1)


def test_gradients_of_zero_are_a_fault_before_any_update_and_perhaps_the_rate_after_one() -> None:
    with pytest.raises(RunError) as first:
        Guard(Heard()).sound(1, result(2.0, 0.0))
    assert "--learning_rate" not in str(first.value) and "please report it" in str(first.value)
    guard = Guard(Heard())
    assert guard.sound(1, result(2.0, 1.0))
    with pytest.raises(RunError, match="lower --learning_rate") as later:
        guard.sound(2, result(9.0, 0.0))
    assert later.value.code == "zero_gradients"


def test_a_step_that_teaches_nothing_is_told_once() -> None:
    heard = Heard()
    guard = Guard(heard)
    assert all(guard.sound(step, result(0.0, 0.0)) for step in (1, 2))
    assert [name for name, _ in heard.events] == ["nothing_to_learn"]
    assert "--gradient_accumulation_steps" in heard.events[0][1]
    quiet = Heard()
    assert Guard(quiet).sound(1, result(1e-3, 1e-3)) and not quiet.events


def test_a_hundredfold_loss_is_flagged_and_does_not_hide_the_next() -> None:
    outliers = Outliers()
    steady = [2.0 + 0.1 * (step % 5) for step in range(64)]
    assert not any(outliers.flag(loss) for loss in steady)
    assert outliers.flag(200.0)
    assert outliers.flag(200.0)
    assert not outliers.flag(2.3)


@pytest.mark.parametrize("losses", [[5.0 - 0.02 * step for step in range(200)], [1.0] * 50])
def test_falling_and_flat_losses_are_not_flagged(losses: list[float]) -> None:
    outliers = Outliers()
    assert not any(outliers.flag(loss) for loss in losses)
