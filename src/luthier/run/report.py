"""report.md: what was learned and from what, how well, what to distrust, and how to use it.

`read_facts` collects what a run wrote down, `compose` turns it into text (a pure function), `write_report` does both
and draws the plots.  A run that was stopped gets a report too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import orjson

from luthier.base.markdown import markdown_table
from luthier.base.records import Json
from luthier.base.rundir import RunDir, write_atomic
from luthier.data.report import DataReport, SetReport, notes, table
from luthier.run.cautions import cautions
from luthier.run.config import RunConfig
from luthier.run.plan import RunPlan, plan_lines
from luthier.run.plots import Rows, curve, draw, sparkline
from luthier.run.usage import Ending, python_lines, usage
from luthier.run.watch import EVENTS, METRICS, duration

PICTURES = ("loss", "tasks", "token_accuracy", "evaluation", "learning_rate", "grad_norm")


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the report is made from."""

    run: Path
    config: RunConfig
    plan: RunPlan
    ending: Ending
    metrics: Rows
    events: Rows
    data: DataReport | None
    environment: Mapping[str, Json]
    memory: Mapping[str, Json]
    pictures: Sequence[str]
    preview: bool
    """Whether there is a preview.html."""
    general: Sequence[Mapping[str, Any]] = ()
    """What changed on general sets."""


def write_report(run: RunDir, config: RunConfig, plan: RunPlan, ending: Ending) -> Path:
    """Draw plots/*.png and write report.md into the run directory.

    Raises:
        RunError: code `disk_full` or `cannot_write`.
    """
    metrics = run.read_rows(METRICS)
    pictures = draw(metrics)
    for name, picture in pictures.items():
        write_atomic(run.file(f"plots/{name}"), picture)
    facts = Facts(
        run=run.path,
        config=config,
        plan=plan,
        ending=ending,
        metrics=metrics,
        events=run.read_rows(EVENTS),
        data=_read_data(run.path / "data_report.json"),
        environment=_read_json(run.path / "env.json"),
        memory=_read_json(run.path / "memory.json"),
        pictures=list(pictures),
        preview=(run.path / "preview.html").exists(),
        general=_read_changes(run.path / "forgetting.json"),
    )
    return run.write_text("report.md", compose(facts))


def _read_json(path: Path) -> dict[str, Json]:
    return orjson.loads(path.read_bytes()) if path.exists() else {}


def _read_changes(path: Path) -> list[Mapping[str, Any]]:
    stored: dict[str, Any] = dict(_read_json(path))
    return stored.get("changes", [])


def _read_data(path: Path) -> DataReport | None:
    stored: dict[str, Any] = dict(_read_json(path))
    if not stored:
        return None
    stored["sets"] = [SetReport(**part) for part in stored["sets"]]
    return DataReport(**stored)


def compose(facts: Facts) -> str:
    """The report as Markdown."""
    sections: dict[str, Callable[[Facts], list[str]]] = {
        "What was learned, and from what": _what,
        "How it went": _results,
        "Before and after": _before_after,
        "What was forgotten": _forgotten,
        "Classes": _classes,
        "What to be careful about": _cautions,
        "How to use the result": _usage,
        "Data": _data,
        "Time, memory, environment": _costs,
    }
    lines = [f"# {facts.run.name}: {headline(facts)}", ""]
    for title, write in sections.items():
        if body := write(facts):
            lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


def headline(facts: Facts) -> str:
    """One sentence: how it ended."""
    at = f"at step {facts.ending.step:,} of {facts.plan.steps:,}"
    match facts.ending.reason:
        case "finished":
            return f"finished after {facts.ending.step:,} steps"
        case "early_stopped":
            return f"ended {at}, because the evaluation no longer improved"
        case "failed":
            return f"failed {at}"
        case signal:
            return f"stopped {at} by {signal}, can be resumed"


def _what(facts: Facts) -> list[str]:
    rows = plan_lines(facts.plan)
    rows["learning rate"] = f"{facts.config.optim.learning_rate:g}, {facts.config.optim.schedule}"
    sets = {task: ", ".join(f"`{name}`" for name in names) for task, names in facts.config.sets.items()}
    rows["data sets"] = "; ".join(f"{task}: {names}" if task else names for task, names in sets.items())
    lines = markdown_table(("", ""), rows.items())
    if facts.ending.message:
        lines += ["", facts.ending.message]
    return lines


def _results(facts: Facts) -> list[str]:
    rows: list[tuple[str, ...]] = []
    told = [("loss", "loss", True), ("token_accuracy", "token accuracy", False)]
    told += [(f"{task}/loss", f"{task} loss", True) for task in facts.config.sets if task]
    both = [(key, f"training {title}", lower) for key, title, lower in told]
    both += [(f"eval_{key}", f"evaluation {title}", lower) for key, title, lower in told]
    for key, title, lower in both:
        steps, values = curve(facts.metrics, key)
        if values:
            best = (min if lower else max)(range(len(values)), key=values.__getitem__)
            at = f"{values[best]:.4f} (step {steps[best]:.0f})"
            rows.append((title, f"{values[0]:.4f}", at, f"{values[-1]:.4f}", f"`{sparkline(values, 24)}`"))
    if not rows:
        return ["No step was logged."]
    pictures = [
        f"![{name.replace('_', ' ')}](plots/{name}.png)" for name in PICTURES if f"{name}.png" in facts.pictures
    ]
    return [*markdown_table(("", "first", "best", "last", "curve"), rows), "", *pictures]


def _before_after(facts: Facts) -> list[str]:
    evaluations = [row for row in facts.metrics if "eval_seconds" in row]
    if len(evaluations) < 2 or evaluations[0].get("step") != 0:
        return []
    first, last = evaluations[0], evaluations[-1]
    rows: list[tuple[str, ...]] = []
    for key, before in first.items():
        after = last.get(key)
        if key.startswith("eval_") and key != "eval_seconds" and _is_number(before) and _is_number(after):
            name = key.removeprefix("eval_").replace("_", " ")
            rows.append((name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"))
    return [
        "On the evaluation set:",
        "",
        *markdown_table(("", "before training", f"step {last['step']}", "change"), rows),
    ]


def _forgotten(facts: Facts) -> list[str]:
    rows = [
        (
            Path(change["set"]).name,
            change["metric"].replace("_", " "),
            f"{change['before']:.4f}",
            f"{change['after']:.4f}",
            f"{change['after'] - change['before']:+.4f}",
        )
        for change in facts.general
    ]
    if not rows:
        return []
    told = f"On general sets, before training and after it by {facts.config.method.type}:"
    return [told, "", *markdown_table(("", "", "before", "after", "change"), rows)]


def _classes(facts: Facts) -> list[str]:
    """Where each row's prediction is, the scores of each class, and a picture of which is taken for which."""
    lines: list[str] = []
    for task in facts.config.sets:
        before, of = (f"{task}-", f" of {task}") if task else ("", "")
        where = f"{before}predictions.jsonl"
        if not (facts.run / where).exists():
            continue
        lines += [f"On the evaluation set{of}, by the best checkpoint; each row's prediction is in {where}.", ""]
        told: Any = _read_json(facts.run / f"{before}classes.json")
        if not told:
            continue
        rows = [
            (row["name"], *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1")), str(row["support"]))
            for row in (*told["classes"], *told["averages"])
        ]
        lines += [*markdown_table(("class", "precision", "recall", "F1", "rows"), rows), ""]
        if (facts.run / f"{before}confusion.csv").exists():
            lines += [f"[{before}confusion.csv]({before}confusion.csv) has the counts of the confusion matrix.", ""]
        if (facts.run / f"plots/{before}confusion.png").exists():
            lines += [f"![confusion](plots/{before}confusion.png)", ""]
    return lines[:-1]


def _is_number(value: Json) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _cautions(facts: Facts) -> list[str]:
    found = cautions(facts.plan, facts.metrics, facts.events, facts.data, complete=facts.ending.complete)
    quant = facts.config.model.quant
    if quant.on:
        found.append(
            f"The adapter was trained over a base held in {quant.bits} bits ({quant.method}). Over the original "
            "weights, as in plain PEFT or merged into them, it answers a little differently."
        )
    return [f"- {line}" for line in found]


def _usage(facts: Facts) -> list[str]:
    commands = usage(facts.run, facts.config, facts.ending)
    lines: list[str] = []
    for title, command in commands.items():
        lines += [f"{title}:", "", "```sh", command, "```", ""]
    if artefact := facts.ending.best or facts.ending.checkpoint:
        for task in facts.config.sets:
            title = f"Open {task} without Luthier:" if task else "Open it without Luthier:"
            lines += [title, "", "```python", *python_lines(facts.config, artefact, task), "```", ""]
    return lines[:-1]


def _data(facts: Facts) -> list[str]:
    if facts.data is None:
        return []
    rows = table(facts.data)
    lines = markdown_table(list(rows[0]), ([str(cell) for cell in row.values()] for row in rows))
    remarks = [f"- {note}" for note in notes(facts.data)]
    if facts.preview:
        remarks.append("- [preview.html](preview.html) shows rows as the model saw them.")
    return [*lines, "", *remarks]


def _costs(facts: Facts) -> list[str]:
    last = next((row for row in reversed(facts.metrics) if "tokens" in row), {})
    rows: dict[str, str] = {"wall time": duration(facts.ending.seconds)}
    for key, title in (("tokens", "tokens read"), ("trained_tokens", "tokens trained on")):
        value = last.get(key)
        if isinstance(value, int | float):
            rows[title] = f"{value:,.0f}"
    _, speeds = curve(facts.metrics, "tokens_per_second")
    if speeds:
        rows["speed, median"] = f"{sorted(speeds)[len(speeds) // 2]:,.0f} tokens a second"
    measured = facts.memory.get("measured")
    if isinstance(measured, dict):
        rows |= {name.replace("_gib", "").replace("_", " "): f"{value} GiB" for name, value in measured.items()}
    for key in ("device", "cpu_cores", "ram_gib", "python", "platform", "git", "seed"):
        if facts.environment.get(key) is not None:
            rows[key.replace("_gib", " (GiB)").replace("_", " ")] = str(facts.environment[key])
    packages = facts.environment.get("packages")
    if isinstance(packages, dict):
        rows["versions"] = ", ".join(f"{name} {found}" for name, found in packages.items())
    return markdown_table(("", ""), rows.items())
