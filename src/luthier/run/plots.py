"""Curves of a run: pictures for the report, one line of blocks for the terminal.

Rows are those of metrics.jsonl: training rows have `loss`, evaluation rows have `eval_loss` and other `eval_*` values.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.base.records import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Json]]
Curve = tuple[list[float], list[float]]
"""Steps and values."""

BLOCKS = "▁▂▃▄▅▆▇█"
TRAIN, EVALUATION, INK, GRID = "#3b6ea5", "#d1495b", "#333333", "#e3e3e3"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: what is drawn from the training rows, and over it from the evaluation rows."""

    title: str
    key: str
    smooth: bool = False
    percent: bool = False


PANELS: Mapping[str, Panel] = {
    "loss": Panel("Loss", "loss", smooth=True),
    "token_accuracy": Panel("Token accuracy", "token_accuracy", smooth=True, percent=True),
    "learning_rate": Panel("Learning rate", "learning_rate"),
    "grad_norm": Panel("Gradient norm before clipping", "grad_norm", smooth=True),
}


def draw(rows: Rows) -> dict[str, bytes]:
    """PNG pictures by file name.  A curve that has no values gives no picture."""
    pictures: dict[str, bytes] = {}
    for name, panel in PANELS.items():
        train, evaluation = curve(rows, panel.key), curve(rows, f"eval_{panel.key}")
        if train[0] or evaluation[0]:
            figure, (axes,) = figure_of(1)
            _draw_panel(axes, panel, train, evaluation)
            pictures[f"{name}.png"] = png_of(figure)
    tasks = {key: curve(rows, key) for key in sorted({key for row in rows for key in row if _is_of_a_task(key)})}
    if tasks:
        figure, all_axes = figure_of(len(tasks))
        for axes, (key, values) in zip(all_axes, tasks.items(), strict=True):
            _draw_panel(
                axes, Panel(f"Loss: {key.removesuffix('/loss')}", key, smooth=True), values, curve(rows, f"eval_{key}")
            )
        pictures["tasks.png"] = png_of(figure)
    keys = sorted({key for row in rows for key in row if key.startswith("eval_")} - {"eval_seconds"})
    curves = {key: values for key in keys if (values := curve(rows, key))[0]}
    if curves:
        figure, all_axes = figure_of(len(curves))
        for axes, (key, values) in zip(all_axes, curves.items(), strict=True):
            title = key.removeprefix("eval_").replace("_", " ")
            _draw_panel(axes, Panel(f"Evaluation: {title}", key), ([], []), values)
        pictures["evaluation.png"] = png_of(figure)
    return pictures


_RUNS = ("#3b6ea5", "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#6b705c", "#00798c", "#b56576")
"""A colour for each run; more runs begin again with dashes."""


def draw_runs(runs: Mapping[str, Rows]) -> dict[str, bytes]:
    """Curves of several runs over each other, a panel for the loss and one for each evaluation metric; PNG by name."""
    metrics = {key for rows in runs.values() for row in rows for key in row if key.startswith("eval_")}
    keys = ["loss", *sorted(metrics - {"eval_seconds"}, key=lambda key: (key != "eval_loss", key))]
    curves = {key: {name: curve(rows, key) for name, rows in runs.items()} for key in keys}
    shown = {key: mine for key, mine in curves.items() if any(steps for steps, _ in mine.values())}
    if not shown:
        return {}
    figure, all_axes = figure_of(len(shown))
    for axes, (key, mine) in zip(all_axes, shown.items(), strict=True):
        for number, (name, (steps, values)) in enumerate(mine.items()):
            window = max(1, len(values) // 20) if key == "loss" else 1
            style = "-" if number < len(_RUNS) else "--"
            marker = "o" if key != "loss" or len(steps) == 1 else None
            line = smoothed(values, window)
            axes.plot(
                steps,
                line,
                style,
                color=_RUNS[number % len(_RUNS)],
                linewidth=1.8,
                label=name,
                marker=marker,
                markersize=4,
            )
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        title = "Training loss" if key == "loss" else f"Evaluation: {key.removeprefix('eval_').replace('_', ' ')}"
        dress(axes, title, "optimizer step")
        axes.legend(frameon=False, fontsize=9)
    return {"curves.png": png_of(figure)}


def _is_of_a_task(key: str) -> bool:
    return key.endswith("/loss") and not key.startswith("eval_")


def curve(rows: Rows, key: str) -> Curve:
    """Steps and finite values of the rows that have `key`."""
    steps: list[float] = []
    values: list[float] = []
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
            steps.append(float(step))
            values.append(float(value))
    return steps, values


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place (of fewer at the start)."""
    return [sum(part) / len(part) for part in (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))]


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as at most `width` block characters, lowest to highest; a wider series is averaged down.

    A place with no finite value is a space; a flat series is drawn at its lowest block.
    """
    count = min(width, len(values))
    cells: list[float | None] = []
    for i in range(count):
        part = values[i * len(values) // count : (i + 1) * len(values) // count]
        finite = [value for value in part if math.isfinite(value)]
        cells.append(sum(finite) / len(finite) if finite else None)
    known = [cell for cell in cells if cell is not None]
    if not known:
        return " " * count
    low, high = min(known), max(known)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if cell is None else BLOCKS[round((cell - low) * scale)] for cell in cells)


def _draw_panel(axes: Axes, panel: Panel, train: Curve, evaluation: Curve) -> None:
    steps, values = train
    if steps:
        window = max(1, len(values) // 20)
        smooth = panel.smooth and window > 1
        axes.plot(
            steps,
            values,
            color=TRAIN,
            alpha=0.3 if smooth else 1.0,
            linewidth=1.2 if smooth else 1.8,
            label="training" if not smooth else None,
            marker="o" if len(steps) == 1 else None,
        )
        if smooth:
            axes.plot(
                steps, smoothed(values, window), color=TRAIN, linewidth=1.8, label=f"training, mean of {window} rows"
            )
    if evaluation[0]:
        axes.plot(*evaluation, color=EVALUATION, linewidth=1.8, marker="o", markersize=4, label="evaluation")
    dress(axes, panel.title, "optimizer step")
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    if panel.percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if steps and evaluation[0]:
        axes.legend(frameon=False)


def dress(axes: Axes, title: str, below: str) -> None:
    """Title, name of the horizontal axis, a quiet grid."""
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xlabel(below, color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def figure_of(panels: int) -> tuple[Figure, list[Axes]]:
    """A white picture of so many panels, one below the other."""
    # Imported here because the terminal's sparkline needs nothing of it and training should start at once.
    # A Figure of its own, not pyplot's: no global state, no display, safe on any thread.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2 * panels), dpi=120, layout="constrained", facecolor="white")
    return figure, list(figure.subplots(panels, 1, squeeze=False)[:, 0])


def png_of(figure: Figure) -> bytes:
    """The picture's file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
