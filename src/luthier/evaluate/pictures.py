"""Pictures of results: bars, a calibration curve, a confusion matrix; PNG bytes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from luthier.evaluate.compare import Change
from luthier.evaluate.task import Result, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEFORE, _AFTER, _INK, _GRID = "#9bb3c9", "#3b6ea5", "#333333", "#e3e3e3"
_MOST_BARS = 40
_MOST_CLASSES = 40
_BINS = 10


def bars(scores: Sequence[Score]) -> bytes | None:
    """Every score between 0 and 1 as a bar, the first 40; None without any."""
    shown = [one for one in scores if 0 <= one.score <= 1][:_MOST_BARS]
    if not shown:
        return None
    figure, axes = _figure(len(shown))
    places = np.arange(len(shown))
    axes.barh(places, [one.score for one in shown], color=_AFTER, height=0.7)
    for place, one in enumerate(shown):
        axes.text(one.score, place, f" {one.score:.3f}", va="center", fontsize=8, color=_INK)
    axes.set_yticks(places, [_name(one.dataset, one.subset, one.metric) for one in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    return _png(figure)


def before_and_after(changes: Sequence[Change]) -> bytes | None:
    """Scores before and after, with the interval of the difference on the later bar; None without any."""
    shown = [one for one in changes if 0 <= one.before <= 1 and 0 <= one.after <= 1][:_MOST_BARS]
    if not shown:
        return None
    figure, axes = _figure(2 * len(shown))
    places = np.arange(len(shown))
    after = np.array([one.after for one in shown])
    spread = [
        [max(0.0, one.difference - one.low) for one in shown],
        [max(0.0, one.high - one.difference) for one in shown],
    ]
    axes.barh(places - 0.2, [one.before for one in shown], color=_BEFORE, height=0.38, label="before")
    axes.barh(places + 0.2, after, color=_AFTER, height=0.38, label="after, with the 95 % interval of the difference")
    axes.errorbar(after, places + 0.2, xerr=spread, fmt="none", ecolor=_INK, elinewidth=1, capsize=2)
    axes.set_yticks(places, [_name(one.dataset, one.subset, one.metric) for one in shown], fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _png(figure)


def calibration(results: Sequence[Result]) -> bytes | None:
    """How often an option was right against how likely the model held it; None where nothing was chosen."""
    held: list[float] = []
    right: list[bool] = []
    for result in results:
        chances, names = result.detail.get("chances"), result.detail.get("options")
        if isinstance(chances, list) and isinstance(names, list):
            held += [float(str(chance)) for chance in chances]
            right += [name == result.reference for name in names]
    if not held:
        return None
    bins = np.minimum((np.array(held) * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    there = counts > 0
    mean_held = np.bincount(bins, held, _BINS)[there] / counts[there]
    share_right = np.bincount(bins, np.array(right, float), _BINS)[there] / counts[there]
    figure, axes = _figure(12)
    axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1.2)
    axes.plot(mean_held, share_right, color=_AFTER, marker="o", markersize=4)
    axes.set_xlabel("chance the model gave an option", color=_INK)
    axes.set_ylabel("share of these that were right", color=_INK)
    return _png(figure)


def confusion(results: Sequence[Result]) -> bytes | None:
    """How often each label was taken for each, rows the right ones; of many labels the most frequent; None without.

    Of tagged words every word counts, of texts with several labels none does.
    """
    pairs = [pair for result in results for pair in _taken(result)]
    if not pairs:
        return None
    often = Counter(wanted for wanted, _ in pairs)
    labels = sorted(label for label, _ in often.most_common(_MOST_CLASSES))
    place = {label: number for number, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for wanted, found in pairs:
        if wanted in place and found in place:
            table[place[wanted], place[found]] += 1
    return matrix(table, labels)


def _taken(result: Result) -> list[tuple[str, str]]:
    """What was wanted and what was found: one label, or the tag of each word."""
    tags, wanted = result.detail.get("tags"), result.detail.get("wanted")
    if isinstance(tags, list) and isinstance(wanted, list):
        return [(str(one), str(other)) for one, other in zip(wanted, tags, strict=True)]
    return [] if "classes" in result.detail else [(result.reference, result.prediction)]


def matrix(counts_CC: NDArray[np.int64], names: Sequence[str]) -> bytes:
    """Counts of classes: rows are what was wanted, columns what was predicted, shades shares of the row."""
    return _shaded(counts_CC, names, names, "predicted")


def verdicts(counts_CK: NDArray[np.int64], names: Sequence[str], kinds: Sequence[str]) -> bytes:
    """Counts of classes that do not exclude each other: a row each, its columns what became of it in every text."""
    return _shaded(counts_CK, names, kinds, "")


def _shaded(counts_CK: NDArray[np.int64], names: Sequence[str], columns: Sequence[str], below: str) -> bytes:
    from matplotlib.figure import Figure

    wide, high = (min(24.0, 3.0 + 0.45 * number) for number in (len(columns), len(names)))
    figure = Figure(figsize=(wide, high), dpi=100, layout="constrained", facecolor="white")
    axes = figure.subplots()
    totals_C1 = counts_CK.sum(1, keepdims=True)
    axes.imshow(counts_CK / np.maximum(totals_C1, 1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_xlabel(below, color=_INK)
    axes.set_ylabel("wanted" if below else "", color=_INK)
    if len(columns) <= 30:
        for row, column in np.argwhere(counts_CK > 0).tolist():
            dark = counts_CK[row, column] * 2 > totals_C1[row, 0]
            text = str(counts_CK[row, column])
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else _INK, fontsize=8)
    return _png(figure)


def _short(name: str) -> str:
    return name if len(name) < 25 else name[:23] + "…"


def _name(dataset: str, subset: str, metric: str) -> str:
    return f"{dataset} {subset} {metric}"


def _figure(rows: int):
    # Imported here because a table needs nothing of it.  A Figure of its own, not pyplot's: no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, max(2.4, 0.9 + 0.26 * rows)), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
