"""What a search has found: the table, the best settings as a recipe, which settings mattered, pictures, the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from luthier.base.config import to_yaml
from luthier.base.markdown import markdown_table
from luthier.base.records import Json
from luthier.base.rundir import write_atomic
from luthier.engine.checkpoint import Checkpoints
from luthier.run.config import RunConfig
from luthier.run.plots import EVALUATION, INK, TRAIN, dress, figure_of, png_of
from luthier.run.search.space import Choices, Dimension, short, values_of
from luthier.run.search.study import FAULT, SAME, STEPS, load_optuna, ranked
from luthier.run.search.trial import run_of
from luthier.run.search.wanted import Wanted
from luthier.run.usage import Ending, usage
from luthier.run.watch import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna import Study
    from optuna.trial import FrozenTrial

BEST = "best.yaml"
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial; they are numbered from 1."""

    number: int
    state: str
    """complete, pruned, failed, or unfinished for one that can be gone on with."""
    value: float | None
    steps: int
    seconds: float | None
    settings: dict[str, Any]
    fault: str
    run: str
    kept: bool
    """Whether its checkpoints are still there."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found so far."""

    trials: Sequence[Tried]
    best: Tried | None
    importance: Mapping[str, float]
    """The share of the differences between trials that each setting explains; empty where that cannot be told."""


def found(wanted: Wanted, study: Study) -> Found:
    """Read it from the journal."""
    trials = [_tried(wanted, trial) for trial in study.trials if SAME not in trial.user_attrs]
    best = ranked(study)
    chosen = next((tried for tried in trials if best and tried.number == best[0].number + 1), None)
    return Found(trials, chosen, _importance(wanted, study))


def _tried(wanted: Wanted, trial: FrozenTrial) -> Tried:
    run = run_of(wanted.trial_folder(trial.number))
    state = _STATES.get(trial.state.name, "unfinished")
    told = trial.intermediate_values.values()
    value = trial.value if state == "complete" else None
    if state == "pruned" and told:
        value = min(told) if wanted.direction == "minimize" else max(told)
    return Tried(
        number=trial.number + 1,
        state=state,
        value=value,
        steps=trial.user_attrs.get(STEPS, max(trial.intermediate_values, default=0)),
        seconds=trial.user_attrs.get("seconds"),
        settings=values_of(wanted.dimensions, trial.params) if trial.params else {},
        fault=trial.user_attrs.get(FAULT, ""),
        run=str(run or ""),
        kept=run is not None and (run / "checkpoints").exists(),
    )


def _importance(wanted: Wanted, study: Study) -> dict[str, float]:
    done = ranked(study)
    varied = [d.path for d in wanted.dimensions if len({str(trial.params[d.path]) for trial in done}) > 1]
    if len(done) < 4 or not varied or len({trial.value for trial in done}) == 1:
        return {}
    return load_optuna().importance.get_param_importances(study)


def write(wanted: Wanted, results: Found) -> None:
    """search.json, best.yaml, plots/*.png and report.md.

    Raises:
        RunError: they cannot be written.
    """
    folder = wanted.folder
    (folder / "plots").mkdir(exist_ok=True)
    write_atomic(folder / "search.json", orjson.dumps(as_json(wanted, results), option=orjson.OPT_INDENT_2))
    if results.best is not None:
        write_atomic(folder / BEST, to_yaml(best_config(wanted, results.best)).encode())
    for name, picture in _pictures(wanted, results).items():
        write_atomic(folder / "plots" / name, picture)
    write_atomic(folder / "report.md", _report(wanted, results).encode())


def as_json(wanted: Wanted, results: Found) -> dict[str, Json]:
    """The search for programs."""
    rows: list[Json] = [_row(tried) for tried in results.trials]
    return {
        "metric": wanted.settings.metric,
        "direction": wanted.direction,
        "sampler": wanted.settings.sampler,
        "pruning": wanted.settings.pruning,
        "seed": wanted.seed,
        "best": _row(results.best) if results.best else None,
        "recipe": str(wanted.folder / BEST) if results.best else None,
        "importance": dict(results.importance),
        "trials": rows,
    }


def _row(tried: Tried) -> dict[str, Json]:
    settings = {path: list(value) if isinstance(value, tuple) else value for path, value in tried.settings.items()}
    return {
        "number": tried.number,
        "state": tried.state,
        "value": tried.value,
        "steps": tried.steps,
        "seconds": tried.seconds,
        "settings": settings,
        "fault": tried.fault or None,
        "run": tried.run or None,
        "checkpoints_kept": tried.kept,
    }


def best_config(wanted: Wanted, best: Tried) -> RunConfig:
    """The settings that train the best trial again, to the last bit on the same CPU; it keeps checkpoints as asked."""
    config = wanted.config_of(best.settings, wanted.folder / "best")
    return config.model_copy(update={"save": wanted.config.save})


def table(wanted: Wanted, results: Found) -> list[dict[str, Json]]:
    """The trials for a person, the best first, then pruned ones, failed ones and those to be gone on with."""
    paths = [dimension.path for dimension in wanted.dimensions]
    order = list(_STATES.values())
    sign = 1 if wanted.direction == "minimize" else -1
    rows = sorted(results.trials, key=lambda t: (order.index(t.state), sign * (t.value or 0.0), t.number))
    return [
        {
            "trial": tried.number,
            wanted.settings.metric: "" if tried.value is None else f"{tried.value:.5g}",
            **dict(zip(short(paths), (str(tried.settings.get(path, "")) for path in paths), strict=True)),
            "steps": tried.steps,
            "time": "" if tried.seconds is None else duration(tried.seconds),
            "": tried.fault if tried.fault else tried.state + (", kept" if tried.kept else ""),
        }
        for tried in rows
    ]


def commands(wanted: Wanted, results: Found) -> dict[str, str]:
    """What to do now: a title and the exact command each."""
    told: dict[str, str] = {}
    if results.best is not None:
        told["Train with the best settings"] = shlex.join(["luthier", "train", str(wanted.folder / BEST)])
        run = Path(results.best.run)
        checkpoints = Checkpoints(run / "checkpoints", None)
        last, best = checkpoints.named("LATEST"), checkpoints.named("BEST")
        config = wanted.config_of(results.best.settings, run)
        told |= usage(run, config, Ending("finished", results.best.steps, 0.0, last, best))
    more = ["luthier", "search", "--resume", str(wanted.folder)]
    unfinished = any(tried.state == "unfinished" for tried in results.trials)
    extra = (
        [] if unfinished or len(results.trials) < wanted.settings.trials else ["--trials", str(2 * len(results.trials))]
    )
    told["Go on searching"] = shlex.join([*more, *extra])
    return told


def _report(wanted: Wanted, results: Found) -> str:
    counts = {state: sum(tried.state == state for tried in results.trials) for state in _STATES.values()}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    name, settings = wanted.folder.name, wanted.settings
    head = f"{settings.metric} {results.best.value:.5g}" if results.best else "nothing found yet"
    lines = [f"# {name}: {head}", "", f"{len(results.trials)} trials: {told}. {_how(wanted)}", ""]
    if results.best is not None:
        lines += ["## Best settings", "", f"Trial {results.best.number}, `{results.best.run}`:", ""]
        lines += markdown_table(("setting", "value"), [(p, str(v)) for p, v in results.best.settings.items()])
        lines += [
            "",
            "Its evaluation was looked at to choose it, so it is a little too good: judge it on other data.",
            "",
        ]
    lines += ["## How to use the result", ""]
    for title, command in commands(wanted, results).items():
        lines += [f"{title}:", "", "```", command, "```", ""]
    if results.importance:
        shares = [(path, f"{share:.0%}") for path, share in results.importance.items()]
        lines += ["## What mattered", "", "The share of the differences between finished trials (PED-ANOVA):", ""]
        lines += [*markdown_table(("setting", "share"), shares), ""]
    if results.best is not None:
        lines += ["## Curves", "", "![Trials](plots/trials.png)", "", "![Settings](plots/settings.png)", ""]
    rows = table(wanted, results)
    if rows:
        lines += ["## Trials", "", *markdown_table([*rows[0]], [[str(cell) for cell in row.values()] for row in rows])]
    return "\n".join(lines) + "\n"


def _how(wanted: Wanted) -> str:
    settings = wanted.settings
    better = "Less" if wanted.direction == "minimize" else "More"
    kept = f"checkpoints are kept of the best {settings.keep}"
    return (
        f"{better} {settings.metric} is better; of each trial its best evaluation counts. Sampler {settings.sampler}, "
        f"seed {wanted.seed}, pruning {settings.pruning}; {kept}."
    )


def _pictures(wanted: Wanted, results: Found) -> dict[str, bytes]:
    done = [tried for tried in results.trials if tried.state == "complete"]
    if not done:
        return {}
    figure, (axes,) = figure_of(1)
    dress(axes, f"{wanted.settings.metric} of each trial", "trial")
    pruned = [tried for tried in results.trials if tried.state == "pruned" and tried.value is not None]
    for group, color, label in ((pruned, "#b0b0b0", "pruned"), (done, TRAIN, "complete")):
        if group:
            axes.plot([t.number for t in group], [t.value or 0.0 for t in group], "o", color=color, label=label)
    better = min if wanted.direction == "minimize" else max
    values = [tried.value or 0.0 for tried in done]
    best = [better(values[: n + 1]) for n in range(len(values))]
    axes.step([tried.number for tried in done], best, where="post", color=EVALUATION, label="best so far")
    axes.legend(frameon=False)
    figures = {"trials.png": png_of(figure)}
    figure, panels = figure_of(len(wanted.dimensions))
    for axes, dimension in zip(panels, wanted.dimensions, strict=True):
        _draw_setting(axes, dimension, done, wanted.settings.metric)
    return figures | {"settings.png": png_of(figure)}


def _draw_setting(axes: Axes, dimension: Dimension, done: Sequence[Tried], metric: str) -> None:
    dress(axes, f"{metric} by {dimension.path}", dimension.path)
    values = [tried.value or 0.0 for tried in done]
    if isinstance(dimension, Choices):
        labels = dimension.labels()
        places = [dimension.values.index(tried.settings[dimension.path]) for tried in done]
        axes.plot(places, values, "o", color=TRAIN)
        axes.set_xticks(range(len(labels)), labels, color=INK)
    else:
        axes.plot([tried.settings[dimension.path] for tried in done], values, "o", color=TRAIN)
        if dimension.log:
            axes.set_xscale("log")
