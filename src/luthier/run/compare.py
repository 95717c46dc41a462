"""Runs side by side: what differs in settings and data, how they went, and what keeps their numbers apart.

Pure functions of what `run.seen` has read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.base.config import nearest
from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.evaluate.compare import Change, changes
from luthier.run.plan import count
from luthier.run.plots import curve, draw_runs
from luthier.run.seen import Evaluated, Seen, lower_is_better
from luthier.run.watch import duration

_OF_A_PLACE = ("output_dir", "log.run_name", "save.resume", "save.allow_change")
"""Settings in which runs differ without being different."""


@dataclass(frozen=True)
class Comparison:
    """Everything that is said."""

    names: tuple[str, ...]
    """Best first."""
    by: str
    overview: list[dict[str, Json]]
    settings: list[dict[str, Json]] = field(default_factory=list[dict[str, Json]])
    data: list[dict[str, Json]] = field(default_factory=list[dict[str, Json]])
    scores: list[dict[str, Json]] = field(default_factory=list[dict[str, Json]])
    changes: Mapping[str, Sequence[Change]] = field(default_factory=dict[str, Sequence[Change]])
    """Of each evaluation against the first one that was named."""
    warnings: list[str] = field(default_factory=list[str])
    pictures: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


def compare(runs: Sequence[Seen], by: str | None) -> Comparison:
    """Runs, best first.

    Args:
        by: the metric they are sorted by; None takes the loss of the evaluation, or else of training.

    Raises:
        ConfigError: no run has the metric.
    """
    by = by or ("eval_loss" if any(run.value("eval_loss") is not None for run in runs) else "loss")
    known = sorted(
        {key for run in runs for row in run.metrics for key in row} | {key for run in runs for key in run.scores}
    )
    if any(run.metrics for run in runs) and all(run.value(by) is None for run in runs):
        raise ConfigError(f"no run has the metric {by!r}", where="--by", code="no_metric", fix=_nearest(by, known))
    sign = 1.0 if lower_is_better(by) else -1.0
    order = sorted(runs, key=lambda run: (run.value(by) is None, sign * (run.value(by) or 0.0)))
    return Comparison(
        names=tuple(run.name for run in order),
        by=by,
        overview=[_row(run, by) for run in order],
        settings=_different({run.name: run.settings for run in order}),
        data=_different({run.name: _sets(run) for run in order}, "Data"),
        scores=_scores(order),
        warnings=_warnings(order),
        pictures=draw_runs({run.name: run.metrics for run in order}),
    )


def compare_evaluations(found: Sequence[Evaluated], by: str | None) -> Comparison:
    """Evaluations: scores side by side, best first, and each against the first named one question by question.

    Raises:
        ConfigError: none has the metric.
    """
    scores = {one.name: {_place(row): row["score"] for row in one.scores} for one in found}
    keys = list(dict.fromkeys(key for mine in scores.values() for key in mine))
    chosen = keys[0] if by is None else next((key for key in keys if key == by or key.endswith(f" {by}")), None)
    if chosen is None:
        raise ConfigError(
            f"no evaluation has the metric {by!r}", where="--by", code="no_metric", fix=_nearest(by or "", keys)
        )
    sign = 1.0 if lower_is_better(chosen) else -1.0

    def rank(one: Evaluated) -> tuple[bool, float]:
        value = scores[one.name].get(chosen)
        return value is None, sign * float(value or 0.0)

    order = sorted(found, key=rank)
    first, *others = found
    told: dict[str, Sequence[Change]] = {}
    warnings: list[str] = []
    for other in others:
        shared = [place for place in first.results if place in other.results]
        told[f"{first.name} -> {other.name}"] = [
            change
            for dataset, subset in shared
            for change in changes(dataset, subset, first.results[dataset, subset], other.results[dataset, subset])
        ]
        if not shared:
            warnings.append(f"{first.name} and {other.name} answered no set of questions in common.")
        for place in shared:
            asked = [{row.key: row.asked for row in one.results[place]} for one in (first, other)]
            if asked[0].keys() != asked[1].keys():
                both = len(asked[0].keys() & asked[1].keys())
                warnings.append(f"{' '.join(place)}: {other.name} answered other questions; {both} are compared.")
    return Comparison(
        names=tuple(one.name for one in order),
        by=chosen,
        overview=[{"Run": one.name, "model": one.model} for one in order],
        scores=[{"Score": key, **{one.name: _number(scores[one.name].get(key)) for one in order}} for key in keys],
        changes=told,
        warnings=warnings,
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    hint = nearest(name, known)
    return f"Did you mean {hint}?" if hint else f"There are {', '.join(known[:12])}"


def _row(run: Seen, by: str) -> dict[str, Json]:
    """One line of the table."""
    total = run.plan.get("steps")
    last = run.train[-1] if run.train else {}
    tokens = last.get("tokens")
    speeds = [float(v) for row in run.train if isinstance(v := row.get("tokens_per_second"), int | float)]
    row: dict[str, Json] = {
        "Run": run.name,
        "state": run.state,
        "steps": f"{run.step:,}/{total:,}" if isinstance(total, int) else f"{run.step:,}",
        "loss": _number(run.value("loss")),
    }
    best = _best(run)
    if best is not None:
        row["eval_loss"], row["at step"] = _number(best[0]), best[1]
    if by not in ("loss", "eval_loss"):
        row[by] = _number(run.value(by))
    trained, worst = run.plan.get("trained_parameters"), _forgotten(run)
    row |= {
        "trained": count(trained) if isinstance(trained, int) else None,
        "tokens": tokens if isinstance(tokens, int) else None,
        "time": duration(run.seconds) if run.seconds is not None else None,
        "tokens/s": round(sorted(speeds)[len(speeds) // 2]) if speeds else None,
        "GiB": _memory(run),
    }
    return row | ({"forgotten": worst} if worst is not None else {})


def _best(run: Seen) -> tuple[float, int] | None:
    steps, values = curve(run.metrics, "eval_loss")
    if not values:
        return None
    at = min(range(len(values)), key=values.__getitem__)
    return values[at], int(steps[at])


def _memory(run: Seen) -> Json:
    measured: Any = run.memory.get("measured", {})
    peak = measured.get("gpu_allocated_peak_gib", measured.get("resident_peak_gib"))
    if peak is None:
        peak = max((v for row in run.train if isinstance(v := row.get("memory_gib"), int | float)), default=None)
    return None if peak is None else round(float(peak), 2)


def _forgotten(run: Seen) -> str | None:
    """The general set that fares worst, with its change."""
    changed = [
        row
        for row in run.forgotten
        if isinstance(row.get("before"), int | float) and isinstance(row.get("after"), int | float)
    ]
    if not changed:
        return None
    worst = max(changed, key=lambda row: _harm(row))
    name = worst.get("dataset", worst.get("set", ""))
    return f"{name} {worst.get('metric', '')} {worst['before']:.4g} to {worst['after']:.4g}"


def _harm(row: Mapping[str, Any]) -> float:
    change = float(row["after"]) - float(row["before"])
    return change if lower_is_better(str(row.get("metric", "loss"))) else -change


def _sets(run: Seen) -> dict[str, Json]:
    """What is known of the data, by the name of the fact."""
    facts: dict[str, Json] = {}
    for part in run.data.get("sets", []):
        name = f"{part.get('use', 'train')} {part.get('name')}"
        facts[name] = f"{part.get('kept'):,} rows, {part.get('tokens'):,} tokens"
    facts["longest allowed"] = run.data.get("max_length")
    return facts


def _different(found: Mapping[str, Mapping[str, Json]], title: str = "Setting") -> list[dict[str, Json]]:
    """The names under which not all say the same; a dash where one says nothing."""
    keys = sorted({key for mine in found.values() for key in mine} - {*_OF_A_PLACE})
    rows: list[dict[str, Json]] = []
    for key in keys:
        values = [mine.get(key, "-") for mine in found.values()]
        if any(value != values[0] for value in values):
            shown = ("unset" if value is None else value for value in values)
            rows.append({title: key, **dict(zip(found, map(_plain, shown), strict=True))})
    return rows


def _plain(value: Json) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _scores(runs: Sequence[Seen]) -> list[dict[str, Json]]:
    """Metrics of evaluations while training, last values, and scores of evaluations inside the runs."""
    found: dict[str, dict[str, Json]] = {}
    for run in runs:
        keys = {key for row in run.metrics for key in row if key.startswith("eval_")} - {"eval_seconds", "eval_loss"}
        for key in sorted(keys):
            _, values = curve(run.metrics, key)
            if values:
                found.setdefault(f"{key} (last)", {})[run.name] = _number(values[-1])
        for key, value in run.scores.items():
            found.setdefault(key, {})[run.name] = _number(value)
    return [{"Score": key, **{run.name: mine.get(run.name) for run in runs}} for key, mine in found.items()]


def _warnings(runs: Sequence[Seen]) -> list[str]:
    """What keeps numbers from being compared, in sentences."""
    told: list[str] = []

    def differs(values: Sequence[object]) -> bool:
        return any(value != values[0] for value in values)

    unfinished = [f"{run.name} ({run.state})" for run in runs if run.state != "finished"]
    if unfinished:
        told.append(f"Not complete: {', '.join(unfinished)}. Their learning rate has not come to its end.")
    if differs([run.settings.get("objective.type") for run in runs]):
        told.append("They learn different things (objective.type): their losses cannot be compared.")
    if differs([run.settings.get("model.path") for run in runs]):
        told.append("They start from different models.")
    tokenizers = [run.tokenizer for run in runs if run.tokenizer is not None]
    if tokenizers and differs(tokenizers):
        told.append("Their tokenizers differ: losses of a token cannot be compared.")
    if differs([_part(run, "train") for run in runs]):
        told.append("They are trained on different data.")
    if differs([_part(run, "validation") for run in runs]):
        told.append("They are judged on different data: evaluation losses cannot be compared.")
    if differs([run.settings.get("data.split_ratio") for run in runs]) or (
        any(run.settings.get("data.split_ratio") for run in runs)
        and differs([run.settings.get("seed") for run in runs])
    ):
        told.append("The rows they hold out for judging are others.")
    elif differs([run.settings.get("seed") for run in runs]):
        told.append("Their seeds differ: small differences may be chance.")
    versions = [(run.environment.get("luthier"), (run.environment.get("packages") or {}).get("torch")) for run in runs]
    if differs(versions) or differs([run.environment.get("device") for run in runs]):
        told.append("They ran on different devices or versions: speed and memory cannot be compared.")
    return told


def _part(run: Seen, use: str) -> list[tuple[Any, ...]]:
    sets = [part for part in run.data.get("sets", []) if part.get("use") == use]
    return [(part.get("name"), part.get("kept"), part.get("tokens")) for part in sets]


def _place(row: Mapping[str, Any]) -> str:
    return f"{Path(str(row['dataset'])).name} {row['subset']} {row['metric']}"


def _number(value: Any) -> Json:
    return round(float(value), 4) if isinstance(value, int | float) else None
