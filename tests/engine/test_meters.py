"""Metrics are (sum, count) until they are read; a standing-out loss is flagged."""

import pytest

from luthier.engine.meters import Means, Outliers


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
