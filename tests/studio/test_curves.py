"""Charts show what metrics.jsonl says, in few points."""

from __future__ import annotations

import math

from luthier.base.records import Json
from luthier.studio.curves import charts, thinned

ROWS: list[dict[str, Json]] = [
    {"step": 0, "eval_loss": 4.0, "eval_token_accuracy": 0.2, "eval_seconds": 1.0, "best": True},
    *({"step": n, "loss": 4.0 - n / 10, "learning_rate": 1e-3, "grad_norm": 1.0} for n in range(1, 10)),
    {"step": 9, "eval_loss": 3.0, "eval_token_accuracy": 0.4, "eval_seconds": 1.0},
]


def test_there_is_a_chart_for_what_has_values() -> None:
    drawn = charts(ROWS)
    assert set(drawn) == {"loss", "evaluation", "learning_rate", "grad_norm"}
    train, judged = drawn["loss"]["series"]
    assert train["data"][0] == [1, 3.9] and judged["data"] == [[0, 4.0], [9, 3.0]]
    assert [line["name"] for line in drawn["evaluation"]["series"]] == ["token_accuracy"]
    assert drawn["loss"]["legend"]["show"] and not drawn["grad_norm"]["legend"]["show"]
    assert charts([]) == {}


def test_a_long_curve_keeps_its_ends_and_its_peaks() -> None:
    steps = [float(n) for n in range(100_000)]
    values = [math.sin(n / 5000) for n in range(100_000)]
    values[54_321] = 9.0
    points = thinned(steps, values)
    assert len(points) <= 402
    assert points[0] == (0.0, values[0]) and points[-1] == (99_999.0, values[-1])
    assert (54_321.0, 9.0) in points
    assert points == sorted(points)


def test_a_short_curve_stays_as_it_is() -> None:
    assert thinned([1.0, 2.0], [3.0, 4.0]) == [(1.0, 3.0), (2.0, 4.0)]
