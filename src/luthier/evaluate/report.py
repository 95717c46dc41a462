"""Results as a person and a program read them: the table, report.json, report.md, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from luthier.base.markdown import markdown_table
from luthier.base.records import Json
from luthier.evaluate import pictures
from luthier.evaluate.compare import Change, changes
from luthier.evaluate.task import Result, Score, Task, metric, metric_names, scores

OVERALL = "OVERALL"


@dataclass(frozen=True)
class Measured:
    """All results of one model."""

    model: str
    results: Mapping[tuple[str, str], Sequence[Result]]
    """By data set and subset."""
    tasks: Sequence[Task]
    further: Sequence[Score] = field(default_factory=tuple)
    """Scores that come without results of single questions."""

    def scores(self) -> list[Score]:
        """Every score; a data set of several subsets has one more of all its questions."""
        found: list[Score] = []
        for dataset in dict.fromkeys(task.dataset for task in self.tasks):
            mine = [task for task in self.tasks if task.dataset == dataset]
            rows = [row for task in mine for row in scores(task, self.results[dataset, task.subset])]
            found += sorted(rows, key=lambda row: list(dict.fromkeys(r.metric for r in rows)).index(row.metric))
            if len(mine) > 1:
                every = [result for task in mine for result in self.results[dataset, task.subset]]
                names = [*metric_names(every), *mine[0].joint]
                wanted = [name for name in names if not mine[0].metrics or name in mine[0].metrics]
                found += [Score(dataset, name, OVERALL, len(every), metric(name, every)) for name in wanted]
        return [*found, *self.further]

    @property
    def cut(self) -> int:
        """Questions that did not fit into the model's context and lost their beginning."""
        return sum("cut" in result.detail for results in self.results.values() for result in results)

    @property
    def refused(self) -> list[str]:
        """Why questions have no answer, for each of them."""
        every = (result.detail.get("refused") for results in self.results.values() for result in results)
        return [str(why) for why in every if why is not None]

    @property
    def caution(self) -> str | None:
        """What is to be known about the scores, in sentences."""
        told: list[str] = []
        if self.cut:
            told.append(f"{self.cut} questions did not fit into the model's context and lost their beginning.")
        if self.refused:
            count = len(self.refused)
            told.append(f"{count} questions were refused and count as wrong; the first one: {self.refused[0]}.")
        return " ".join(told) or None


def table(measured: Measured) -> list[dict[str, Json]]:
    """The familiar table."""
    return [
        {
            "Model": measured.model,
            "Dataset": row.dataset,
            "Metric": row.metric,
            "Subset": row.subset,
            "Num": row.num,
            "Score": _number(row.score),
        }
        for row in measured.scores()
    ]


def compared(before: Measured, after: Measured) -> list[Change]:
    """What changed from one model to the other."""
    found: list[Change] = []
    for task in after.tasks:
        old, new = before.results[task.dataset, task.subset], after.results[task.dataset, task.subset]
        found += [
            change
            for change in changes(task.dataset, task.subset, old, new, task.joint)
            if not task.metrics or change.metric in task.metrics
        ]
    return found


def change_table(found: Sequence[Change]) -> list[dict[str, Json]]:
    """Before and after, with the 95 % interval of the difference; * where it leaves 0 out."""
    return [
        {
            "Dataset": one.dataset,
            "Metric": one.metric,
            "Subset": one.subset,
            "Num": one.num,
            "Before": _number(one.before),
            "After": _number(one.after),
            "Difference": "" if math.isnan(one.difference) else f"{one.difference:+.4f}{'*' if one.sure else ''}",
            "95 %": "" if math.isnan(one.low) else f"{one.low:+.4f} to {one.high:+.4f}",
            "Wins": one.wins,
            "Losses": one.losses,
        }
        for one in found
    ]


def as_json(measured: Measured, found: Sequence[Change], settings: Mapping[str, Json]) -> dict[str, Json]:
    """Everything but the single answers."""
    return {
        "model": measured.model,
        "scores": [asdict(row) for row in measured.scores()],
        "changes": [{**asdict(one), "difference": one.difference} for one in found],
        "cut": measured.cut,
        "refused": len(measured.refused),
        "settings": dict(settings),
    }


def as_markdown(measured: Measured, found: Sequence[Change], base: str, drawn: Sequence[str]) -> str:
    """The report to read."""
    parts = [f"# Evaluation of {measured.model}", _markdown(table(measured))]
    if measured.caution:
        parts.append(measured.caution)
    if found:
        about = "The interval is that of the difference over questions drawn again; * where it leaves 0 out."
        parts += [f"## Against {base}", _markdown(change_table(found)), about]
    parts += [f"![{name}](plots/{name})" for name in drawn]
    parts.append("Every answer stands in items/<data set>/<subset>.jsonl.")
    return "\n\n".join(parts) + "\n"


def draw(measured: Measured, found: Sequence[Change]) -> dict[str, bytes]:
    """Pictures by file name."""
    every = [result for results in measured.results.values() for result in results]
    drawn = {
        "scores.png": pictures.bars(measured.scores()),
        "change.png": pictures.before_and_after(found),
        "calibration.png": pictures.calibration(every),
    }
    for task in measured.tasks:
        if task.classes:
            mine = measured.results[task.dataset, task.subset]
            drawn[f"confusion-{Path(task.dataset).name}-{task.subset}.png"] = pictures.confusion(mine)
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _markdown(rows: Sequence[Mapping[str, Json]]) -> str:
    if not rows:
        return ""
    return "\n".join(markdown_table([*rows[0]], ([str(value) for value in row.values()] for row in rows)))


def _number(value: float) -> Json:
    return None if math.isnan(value) else round(value, 4)
