"""One evaluation: open the model, ask every question that has no answer yet, judge, compare, write it down."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import cast

import orjson

from luthier.base.config import validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, Stopped
from luthier.base.records import Json
from luthier.base.rundir import RunDir, write_atomic
from luthier.base.signals import StopRequest, stop_requests
from luthier.evaluate import judge, report
from luthier.evaluate.catalogue import tasks_of
from luthier.evaluate.compare import Change
from luthier.evaluate.config import EvalConfig, SetConfig
from luthier.evaluate.measure import Examined, measure
from luthier.evaluate.report import Measured
from luthier.evaluate.specialist import LANGUAGE, Skill
from luthier.evaluate.task import Result, Task
from luthier.generate.endpoint import Endpoint, NotAnswered, check_any
from luthier.run.subject import Askable, other_of, subject_of


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation found, and where it lies."""

    measured: Measured
    changes: Sequence[Change]
    folder: Path


def evaluate(options: EvalConfig, console: Console) -> Evaluated:
    """Run an evaluation and write its report.

    Raises:
        ConfigError, DataError: naming the flag, file or row, before any model is loaded.
        Stopped: asked to stop; the same command goes on.
    """
    subject = subject_of(options)
    tasks = read_tasks(options, subject.skill)
    if (
        options.judge.by == "pairwise"
        and options.compare is None
        and not any(i.references for t in tasks for i in t.items)
    ):
        raise ConfigError("a pair needs another answer", where="--judge.by", fix="Give --compare MODEL")
    if options.judge.by != "none":
        Endpoint(options.judge.endpoint, Path(options.output_dir) / "judge.sqlite")  # refuses missing settings now
    _check_engine(options, tasks)
    other = other_of(options)
    if other is not None:
        _check_comparable(tasks, other.skill, str(options.compare))
    with stop_requests("finishing the questions under way, then keeping their answers") as stop:
        before = None
        if other is not None:
            before, _ = _measured(options, other, tasks, console, stop)
        after, folder = _measured(options, subject, tasks, console, stop)
    if options.judge.by != "none":
        after = _judged(options, after, before, console)
        if before is not None and options.judge.by == "rubric":
            before = _judged(options, before, None, console)
    found = report.compared(before, after) if before else []
    base = before.model if before else ""
    if (earlier := _set_aside(options, folder)) is not None:
        console.say(f"The report of an evaluation with other sets or settings is kept: {earlier}")
    _write(options, after, found, base, folder)
    return Evaluated(after, found, folder)


def _check_engine(options: EvalConfig, tasks: Sequence[Task]) -> None:
    """Raises ConfigError where a server is to tell more than answers."""
    if options.eval_url is not None:
        reads = next((task for task in tasks if task.how == "read"), None)
        if reads is not None:
            raise ConfigError(
                f"{reads.dataset} needs every token of a text, and is read by models in this process only",
                where="--eval_url",
                fix="Give the model's folder as --model, without --eval_url",
                code="answers_only",
            )
    more = next((task for task in tasks if task.how != "generate"), None)
    if options.backend not in ("transformers", "pt") and more is not None:
        raise ConfigError(
            f"{more.dataset} is not judged by answers alone, which is all that {options.backend} gives",
            where=f"--infer_backend {options.backend}",
            fix="Give --method generation for multiple choice, or --infer_backend transformers",
            code="answers_only",
        )


def _check_comparable(tasks: Sequence[Task], other: Skill, named: str) -> None:
    """Raises ConfigError where the other model cannot be asked the same."""
    for task in tasks:
        if not other.can(task.how):
            raise ConfigError(
                f"this model {other.words}, and cannot be asked {task.dataset} as the other one is",
                where=f"--compare {named}",
                fix="Name a model that was trained for the same",
                code="other_skill",
            )


def read_tasks(options: EvalConfig, skill: Skill = LANGUAGE) -> list[Task]:
    """Every question to a model of some skill, before anything is loaded.

    Raises:
        ConfigError, DataError: a data set that is unknown, misses its files, or cannot be read.
    """
    if not options.eval_dataset:
        raise ConfigError(
            "no data set was named", where="--eval_dataset", fix="For example: --eval_dataset general_mcq"
        )
    unknown = set(options.dataset_args) - set(options.eval_dataset)
    if unknown:
        raise ConfigError(f"{min(unknown)!r} is not among the data sets", where="--dataset_args")
    root = Path(options.data_root).expanduser() if options.data_root else None
    tasks: list[Task] = []
    for name in dict.fromkeys(options.eval_dataset):
        given = options.dataset_args.get(name, {})
        if not isinstance(given, dict):
            raise ConfigError("expected an object of settings", where=f"--dataset_args {name}")
        defaults: dict[str, Json] = {"few_shot_num": options.few_shot_num, "limit": options.eval_limit}
        config = validate(SetConfig, defaults | cast(dict[str, Json], given))
        tasks += tasks_of(name, config, root, options.method, skill)
    return tasks


def _measured(
    options: EvalConfig, model: Askable, tasks: Sequence[Task], console: Console, stop: StopRequest
) -> tuple[Measured, Path]:
    """The results of one model, most of which may lie there already."""
    folder = Path(options.output_dir) / f"{model.name}-{model.identity}"
    (folder / "items").mkdir(parents=True, exist_ok=True)
    total = sum(len(task.items) for task in tasks)
    results: dict[tuple[str, str], Sequence[Result]] = {}
    with model.opened(console.say) as subject, console.progress(f"Asking {subject.name}", total) as bar:
        for task in tasks:
            results[task.dataset, task.subset] = _asked(subject, task, folder, bar.advance, stop)
        name = subject.name
    del subject
    gc.collect()
    return Measured(name, results, tasks), folder


def _asked(
    subject: Examined, task: Task, folder: Path, progress: Callable[[int], None], stop: StopRequest
) -> list[Result]:
    place = folder / "items" / Path(task.dataset).name
    place.mkdir(exist_ok=True)
    found: dict[str, Result] = {}
    for chunk in measure(subject, task, place / f"{task.subset}.jsonl", progress):
        found.update((result.key, result) for result in chunk)
        if stop.asked is not None and len(found) < len(task.items):
            raise Stopped(
                f"{len(found)} of {len(task.items)} questions of {task.dataset} {task.subset} are answered",
                where=str(place),
                fix="The same command goes on from there",
            )
    return [found[item.key] for item in task.items]


def _judged(options: EvalConfig, measured: Measured, before: Measured | None, console: Console) -> Measured:
    """The results with a judge's opinion of every generated answer; what it refuses to read is unreadable.

    Raises:
        ConfigError, RunError: nothing to judge; no judge, or one that refuses everything.
    """
    endpoint = Endpoint(options.judge.endpoint, Path(options.output_dir) / "judge.sqlite")
    generated = {(task.dataset, task.subset) for task in measured.tasks if task.how == "generate"}
    if not generated:
        raise ConfigError("nothing was generated that could be judged", where="--judge.by")
    asked, refusals = 0, list[NotAnswered]()

    def refused(error: NotAnswered) -> str:
        refusals.append(error)
        return ""

    def ask(chats: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        nonlocal asked
        asked += len(chats)
        return endpoint.ask(chats, refused=refused)

    results: dict[tuple[str, str], Sequence[Result]] = {}
    for name, mine in measured.results.items():
        if name not in generated:
            results[name] = mine
        elif options.judge.by == "rubric":
            results[name] = judge.by_rubric(ask, mine, options.judge.rubric)
        else:
            others = before.results[name] if before else None
            pairs = {r.key: r.prediction for r in others} if others else {r.key: r.reference for r in mine}
            results[name] = judge.pairwise(ask, mine, pairs, options.judge.rubric, references=before is not None)
    check_any(refusals, asked)
    if refusals:
        console.warn(f"the judge refused {len(refusals)} of {asked} questions, which are unreadable: {refusals[0]}")
    return replace(measured, results=results)


def _set_aside(options: EvalConfig, folder: Path) -> Path | None:
    """Move the report of another evaluation of the same model out of the way; where to, if there is one."""
    report = folder / "report.json"
    if not report.exists():
        return None
    try:
        earlier = orjson.loads(report.read_bytes()).get("settings")
    except orjson.JSONDecodeError:
        earlier = None
    if earlier == orjson.loads(orjson.dumps(options.model_dump(mode="json"))):
        return None
    made = datetime.fromtimestamp(report.stat().st_mtime, UTC).strftime("%Y%m%d-%H%M%S")
    place = next(path for n in count() if not (path := folder / "earlier" / (f"{made}-{n}" if n else made)).exists())
    place.mkdir(parents=True)
    for name in ("report.md", "plots", "judged", "report.json"):  # the one that says that there is a report goes last
        if (folder / name).exists():
            (folder / name).rename(place / name)
    return place


def _write(options: EvalConfig, measured: Measured, found: Sequence[Change], base: str, folder: Path) -> None:
    kept = RunDir(folder)
    settings: Mapping[str, Json] = options.model_dump(mode="json")
    kept.write_json("report.json", report.as_json(measured, found, settings))
    drawn = report.draw(measured, found)
    for name, picture in drawn.items():
        write_atomic(kept.file(f"plots/{name}"), picture)
    kept.write_text("report.md", report.as_markdown(measured, found, base, list(drawn)))
    if options.judge.by != "none":
        for (dataset, subset), results in measured.results.items():
            rows: list[Json] = [dict(result.line()) for result in results]
            kept.write_json(f"judged/{Path(dataset).name}/{subset}.json", rows)
