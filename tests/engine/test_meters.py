"""Metrics are (sum, count) until they are read; a standing-out loss is flagged."""

import time

import pytest
import torch

from luthier.engine.mesh import Mesh
from luthier.engine.meters import Clock, Means, Outliers


def test_means_weigh_by_count():
    means = Means()
    means.add({"accuracy": (1.0, 1.0)})
    means.add({"accuracy": (0.0, 3.0), "nothing": (0.0, 0.0)})
    assert means.read() == {"accuracy": 0.25}


def test_a_hundredfold_loss_is_flagged_and_does_not_hide_the_next():
    outliers = Outliers()
    steady = [2.0 + 0.1 * (step % 5) for step in range(64)]
    assert not any(outliers.flag(loss) for loss in steady)
    assert outliers.flag(200.0)
    assert outliers.flag(200.0)
    assert not outliers.flag(2.3)


@pytest.mark.parametrize("losses", [[5.0 - 0.02 * step for step in range(200)], [1.0] * 50])
def test_falling_and_flat_losses_are_not_flagged(losses: list[float]):
    outliers = Outliers()
    assert not any(outliers.flag(loss) for loss in losses)


def test_rates_are_those_of_whole_steps(monkeypatch: pytest.MonkeyPatch):
    moments = iter((0.0, 2.0, 4.0, 10.0))  # whoever reads late reads the same
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = Clock()
    clock.add(100)
    clock.add(100)
    assert clock.rates() == (50.0, 2.0)
    clock.restart()
    clock.add(300)
    assert clock.rates() == (50.0, 6.0)


def test_a_seed_draws_what_torch_draws():
    torch.manual_seed(7)
    expected = torch.rand(5)
    torch.rand(3)
    Mesh(torch.device("cpu")).seed(7)
    assert torch.equal(torch.rand(5), expected)
