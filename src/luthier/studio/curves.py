"""Curves of a run as charts for a page: pure functions of the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.run.plots import EVALUATION, TRAIN, Curve, Rows, curve

POINTS = 400
"""Most points of a curve that a page is sent."""
_INK = "#8a8f98"
"""Readable on light and on dark."""
_LINES = (TRAIN, EVALUATION, "#4f9d69", "#b07aa1", "#d19a3d", "#5bb0c9", "#8c6d46", "#7a7a7a")
_OWN = ("eval_loss", "eval_seconds")


def charts(rows: Rows, train: str = "train", judged: str = "eval") -> dict[str, dict[str, Any]]:
    """Charts by name: loss, learning_rate, grad_norm, evaluation, tokens_per_second; only those with values.

    Args:
        train, judged: what the two curves of the loss are called.
    """
    drawn = {
        "loss": {train: curve(rows, "loss"), judged: curve(rows, "eval_loss")},
        "evaluation": {key.removeprefix("eval_"): curve(rows, key) for key in _judged(rows)},
        **{key: {key: curve(rows, key)} for key in ("learning_rate", "grad_norm", "tokens_per_second")},
    }
    return {name: options(lines) for name, lines in drawn.items() if any(steps for steps, _ in lines.values())}


def options(lines: Mapping[str, Curve]) -> dict[str, Any]:
    """One chart of ECharts with a line for each curve, its legend only where there are several."""
    shown = {name: thinned(*line) for name, line in lines.items() if line[0]}
    axis = {"axisLabel": {"color": _INK, "hideOverlap": True}, "axisLine": {"lineStyle": {"color": _INK}}}
    grid_line = {"splitLine": {"lineStyle": {"color": _INK, "opacity": 0.2}}}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 16, "top": 30 if len(shown) > 1 else 12, "bottom": 4, "containLabel": True},
        "legend": {"show": len(shown) > 1, "top": 0, "textStyle": {"color": _INK}, "type": "scroll"},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {"type": "value", "min": "dataMin", "max": "dataMax", "minInterval": 1, **axis, **grid_line},
        "yAxis": {"type": "value", "scale": True, **axis, **grid_line},
        "series": [
            {
                "name": name,
                "type": "line",
                "data": [list(point) for point in points],
                "showSymbol": len(points) < 30,
                "symbolSize": 5,
                "lineStyle": {"width": 2},
                "itemStyle": {"color": colour},
            }
            for (name, points), colour in zip(shown.items(), _LINES * len(shown), strict=False)
        ],
    }


def thinned(steps: Sequence[float], values: Sequence[float], most: int = POINTS) -> list[tuple[float, float]]:
    """At most about `most` points that keep the ends and, of each stretch, the lowest and the highest value."""
    points = list(zip(steps, values, strict=True))
    if len(points) <= most:
        return points
    width = len(points) / (most // 2)
    kept = {0, len(points) - 1}
    for part in range(most // 2):
        stretch = range(round(part * width), round((part + 1) * width))
        kept |= {min(stretch, key=lambda at: points[at][1]), max(stretch, key=lambda at: points[at][1])}
    return [points[at] for at in sorted(kept)]


def _judged(rows: Rows) -> list[str]:
    """What evaluations told besides the loss."""
    return sorted({key for row in rows for key in row if key.startswith("eval_") and key not in _OWN})
