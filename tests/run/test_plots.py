"""Curves: the pictures that are drawn, and the terminal's one line."""

from __future__ import annotations

import math

from luthier.run.plots import curve, draw, smoothed, sparkline

PNG = b"\x89PNG\r\n\x1a\n"


def training_rows(n: int) -> list[dict]:
    return [
        {"step": i, "loss": 3.0 / (i + 1), "token_accuracy": i / n, "grad_norm": 1.0, "learning_rate": 1e-4 * i / n}
        for i in range(1, n + 1)
    ]


def evaluation_rows(n: int) -> list[dict]:
    return [
        {"step": i, "eval_loss": 3.0 / i, "eval_token_accuracy": 0.5, "eval_seconds": 1.0, "best": True}
        for i in range(10, n + 1, 10)
    ]


def test_every_curve_that_has_values_is_drawn() -> None:
    pictures = draw(training_rows(50) + evaluation_rows(50))
    assert set(pictures) == {"loss.png", "token_accuracy.png", "learning_rate.png", "grad_norm.png", "evaluation.png"}
    assert all(data.startswith(PNG) and len(data) > 5_000 for data in pictures.values())


def test_nothing_is_drawn_without_values() -> None:
    assert draw([]) == {}
    assert set(draw([{"step": 1, "loss": 2.0}])) == {"loss.png"}
    assert draw([{"step": 1, "loss": None}]) == {}


def test_holes_are_left_out_of_a_curve() -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": math.nan}, {"step": 4, "loss": 1}]
    assert curve(rows, "loss") == ([1.0, 4.0], [2.0, 1.0])


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    assert smoothed([4.0, 2.0, 0.0, 6.0], 2) == [4.0, 3.0, 1.0, 3.0]


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 7, 0, 0], width=2) == "█▁"
    assert sparkline([1.0, math.nan, 2.0]) == "▁ █"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([math.nan]) == " "
    assert sparkline([]) == ""
    assert len(sparkline(list(range(1000)), width=33)) == 33
