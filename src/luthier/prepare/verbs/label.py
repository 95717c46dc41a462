"""Give rows labels: through Label Studio, an endpoint with a guideline, or a local model; and measure agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field, model_validator

from luthier.base.endpoint import EndpointConfig
from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Json
from luthier.base.rundir import write_atomic
from luthier.prepare.frame import Frame
from luthier.prepare.guideline import Question, verdict
from luthier.prepare.models import ModelVerbConfig
from luthier.prepare.parcel import Batch, Item, Parcel, Tally
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.studio_json import Form, Kind, Said, comparable, is_task, said_of, tasks_file
from luthier.prepare.verb import Job, Outcome, Verb
from luthier.prepare.view import column, text_of
from luthier.score.agreement import (
    Level,
    Ratings,
    alpha_by_class,
    by_annotator,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
)

_ASKED_AT_ONCE = 256


class LabelConfig(ModelVerbConfig):
    """Where labels come from, and where they go."""

    method: Literal["export", "import", "endpoint", "pseudo", "agreement"] = "endpoint"
    """export: rows as Label Studio's tasks; import: its JSON export as rows; endpoint: ask a model by a guideline;
    pseudo: let a local model choose; agreement: join the columns of several annotators."""
    label: str = "label"
    """Column the label is written to, or read from as a first guess (export)."""
    labels: tuple[str, ...] = ()
    """The labels there are."""
    guideline: str | None = None
    """File with the written guideline for endpoint and pseudo."""
    text: str | None = None
    """Column with the text to label. Unset: all the text of a row."""
    multiple: bool = False
    """endpoint: several labels fit a text."""
    answer_schema: str | None = None
    """endpoint: file with a JSON schema of the answer instead of labels; the answer's keys become columns."""
    votes: int = Field(default=1, ge=1, le=25)
    """endpoint: ask so often and take the favourite; the share of its votes is the confidence. Needs a temperature."""
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    """endpoint and pseudo: below this, a row gets no label."""
    unsure: Literal["keep", "drop"] = "drop"
    """Rows without a label: leave them out, or keep them unlabelled."""
    relabel: bool = False
    """endpoint and pseudo: also rows that have a label already."""
    form: Kind = "choices"
    """export: what annotators are asked."""
    other: str | None = None
    """export: column with the second text of a pair."""
    tasks: str | None = None
    """export: also write the tasks as a JSON array to this file, which Label Studio imports."""
    interface: str | None = None
    """export: write the labelling interface (XML) to this file."""
    annotators: tuple[str, ...] = ()
    """agreement: the columns with each annotator's answer."""
    resolve: Literal["majority", "first", "all"] = "majority"
    """import and agreement: what several answers become; all writes a row for each."""
    level: Level = "nominal"
    """What a difference between two answers means: nominal, ordinal or interval."""
    endpoint: EndpointConfig = EndpointConfig()
    """The endpoint that labels."""

    @model_validator(mode="after")
    def _possible(self) -> LabelConfig:
        if self.method == "endpoint":
            self.endpoint.require()
        if self.method == "pseudo" and not self.model.path:
            raise ValueError("pseudo-labels need a model: --model FOLDER")
        needs_labels = self.method == "pseudo" or (self.method == "endpoint" and not self.answer_schema)
        if needs_labels and len(self.labels) < 2:
            raise ValueError("labels must name two labels or more (or give an answer_schema to an endpoint)")
        if self.method in ("endpoint", "pseudo") and not self.guideline:
            raise ValueError("a guideline is needed: a file that says what each label means, with examples")
        if self.votes > 1 and self.endpoint.temperature == 0:
            raise ValueError("votes need a temperature above 0, or every vote is the same")
        if self.method == "agreement" and len(self.annotators) < 2:
            raise ValueError("annotators must name two columns or more")
        if self.method == "export" and self.form == "pairwise" and not (self.text and self.other):
            raise ValueError("pairs need the columns of both texts: --text and --other")
        return self


def label(rows: Frame, config: LabelConfig, job: Job) -> Outcome:
    """Give rows labels.

    Raises:
        ConfigError: a guideline or schema that cannot be read.
        DataError: rows without what the method reads.
    """
    match config.method:
        case "export":
            return _export(rows, config)
        case "import":
            return _import(rows, config)
        case "agreement":
            return _agreement(rows, config)
        case "endpoint":
            return _by_endpoint(rows, config, job)
        case "pseudo":
            return _by_model(rows, config, job)


# Label Studio


@dataclass(frozen=True)
class _Task:
    """Writes each row as a task."""

    form: Form
    label: str
    column: str | None

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            value = item.value if self.column else {**item.value, "text": text_of(item.value)}
            parcel.keep(item, self.form.task(value, column(item.value, self.label)))
        return parcel


def _export(rows: Frame, config: LabelConfig) -> Outcome:
    labels = config.labels
    if not labels and config.form == "choices":
        labels = tuple(sorted(rows.measure(_Seen(config.label), "Reading labels").tally.counts))
    form = Form(config.form, config.text or "text", labels, config.other)
    if config.interface:
        write_atomic(Path(config.interface).expanduser(), form.config().encode())
    stream = rows.scan(_Task(form, config.label, config.text), "Writing tasks")
    report = Report(notes=[f"Labelling interface:\n{form.config()}"])
    if not config.tasks:
        return Outcome(report, stream)
    path = Path(config.tasks).expanduser()

    def kept():
        tasks: list[bytes] = []
        for parcel in stream:
            tasks.extend(bytes(parcel.lines.get("", b"")).split(b"\n")[:-1])
            yield parcel
        write_atomic(path, tasks_file(tasks))

    return Outcome(report, kept())


@dataclass(frozen=True)
class _Seen:
    """Counts the labels that are text."""

    name: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            found = column(item.value, self.name)
            if isinstance(found, str) and found:
                parcel.tally.count(found)
        return parcel


@dataclass(frozen=True)
class _Annotated:
    """What the annotators of each row said, as lines of [control, [[annotator, answer], ...]]."""

    columns: tuple[str, ...]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            if self.columns:
                answers = [[name, column(item.value, name)] for name in self.columns]
                rated: dict[str, Any] = {"": [answer for answer in answers if answer[1] not in (None, "")]}
            else:
                rated = {}
                for said in said_of(item.value) if is_task(item.value) else ():
                    for name, answer in said.values.items():
                        rated.setdefault(name, []).append([said.annotator, comparable(answer)])
            parcel.keep_line(item.file, item.line, orjson.dumps(rated), "said")
        return parcel


@dataclass(frozen=True)
class _Import:
    """Writes each task as a row."""

    resolve: Literal["majority", "first", "all"]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            if not is_task(item.value):
                parcel.drop(item, "no_task")
                continue
            said = said_of(item.value)
            for kind in (kind for one in said for kind in one.ignored):
                parcel.tally.count(f"ignored: {kind}")
            if not said:
                parcel.drop(item, "not_annotated")
                continue
            data = cast(dict[str, Json], item.value["data"])
            chosen = said if self.resolve == "all" else [_resolved(said, self.resolve)]
            for one in chosen:
                if one is None or not one.values:
                    parcel.drop(item, "no_majority" if one is None else "nothing_said")
                    continue
                row: dict[str, Json] = {**data, **one.values, **_preferred(data, item.value, one)}
                parcel.keep(item, {**row, "annotator": one.annotator} if self.resolve == "all" else row)
        return parcel


def _resolved(said: Sequence[Said], how: Literal["majority", "first"]) -> Said | None:
    """One annotation of several: a ground truth wins; else the first, or for each control what most said."""
    truth = next((one for one in said if one.ground_truth), None)
    if truth is not None or how == "first" or len(said) == 1:
        return truth or said[0]
    made = Said("majority")
    for name in dict.fromkeys(name for one in said for name in one.values):
        given = [one.values[name] for one in said if name in one.values]
        keys = [comparable(answer) for answer in given]
        most = max(keys.count(key) for key in keys)
        best = dict.fromkeys(key for key in keys if keys.count(key) == most)
        if len(best) == 1:
            made.values[name] = given[keys.index(next(iter(best)))]
    return made if made.values else None


def _preferred(data: Mapping[str, Json], task: Mapping[str, Json], said: Said) -> dict[str, Json]:
    """chosen and rejected of a task that compared two texts, where it is clear which ones."""
    side = next((answer for answer in said.values.values() if answer in ("left", "right")), None)
    texts = [name for name, value in data.items() if isinstance(value, str) and name not in ("prompt", "instruction")]
    if side is None or len(texts) != 2 or "chosen" in data:
        return {}
    left, right = (data[name] for name in texts)
    return {"chosen": left, "rejected": right} if side == "left" else {"chosen": right, "rejected": left}


def _import(rows: Frame, config: LabelConfig) -> Outcome:
    report = Report()
    for name, ratings, people in _ratings(rows, ()):
        _describe_agreement(report, name, ratings, people, config.level)

    def noted():
        counted = Tally()
        for parcel in rows.scan(_Import(config.resolve), "Writing rows"):
            counted.add(parcel.tally)
            yield parcel
        ignored = {name[9:]: n for name, n in counted.counts.items() if name.startswith("ignored: ")}
        if ignored:
            named = ", ".join(f"{name} ({n})" for name, n in ignored.items())
            report.notes.append(f"Results that have no place in a row were left out: {named}")

    return Outcome(report, noted())


# Agreement


def _ratings(rows: Frame, columns: tuple[str, ...]) -> list[tuple[str, Ratings, list[str]]]:
    """For each control the ratings of those items that somebody judged, and the annotators."""
    items: dict[str, list[dict[str, Any]]] = {}
    for parcel in rows.scan(_Annotated(columns), "Reading answers"):
        for line in bytes(parcel.lines.get("said", b"")).split(b"\n")[:-1]:
            for name, answers in orjson.loads(line).items():
                items.setdefault(name, []).append({who: comparable(answer) for who, answer in answers})
    found: list[tuple[str, Ratings, list[str]]] = []
    for name, rated in sorted(items.items()):
        people = list(columns) or sorted({who for row in rated for who in row})
        found.append((name, Ratings.of([[row.get(who) for who in people] for row in rated]), people))
    return found


def _describe_agreement(report: Report, name: str, ratings: Ratings, people: Sequence[str], level: Level) -> None:
    """Tables of agreement over all, by class and by annotator."""
    if len(people) < 2 or len(ratings.classes) < 2:
        return
    title = f"Agreement{f': {name}' if name else ''}"
    try:
        alpha = krippendorff_alpha(ratings, level)
    except ValueError as error:
        raise ConfigError(str(error), where="--level", fix="Use nominal or ordinal") from error
    whole: dict[str, Json] = {"items": len(ratings.codes_NA), "annotators": len(people)}
    whole[f"Krippendorff's alpha ({level})"] = _shown(alpha)
    if len(people) == 2:
        whole["Cohen's kappa"] = _shown(
            cohen_kappa(ratings.codes_NA[:, 0], ratings.codes_NA[:, 1], len(ratings.classes))
        )
    full = (ratings.codes_NA >= 0).all(axis=1)
    if full.any():
        whole["Fleiss' kappa (items that all judged)"] = _shown(fleiss_kappa(ratings.counts_NK[full]))
    report.tables.append(Table(title, [whole]))
    report.summary["alpha" if not name else f"alpha of {name}"] = _shown(alpha)
    if len(ratings.classes) <= 100:
        counts = ratings.counts_NK.sum(axis=0).tolist()
        by_class = zip(ratings.classes, counts, alpha_by_class(ratings).tolist(), strict=True)
        shown = [{"class": str(kind), "answers": n, "alpha": _shown(value)} for kind, n, value in by_class]
        report.tables.append(Table(f"{title} by class", shown))
    found = by_annotator(ratings, level)
    report.tables.append(
        Table(
            f"{title} by annotator",
            [
                {
                    "annotator": who,
                    "answers": one.answers,
                    "kappa with others": _shown(one.kappa),
                    "as most others": _shown(one.with_majority),
                    "alpha without": _shown(one.alpha_without),
                }
                for who, one in zip(people, found, strict=True)
            ],
        )
    )
    if alpha < 0.667:
        what = f"alpha {alpha:.3f} is below 0.667, under which Krippendorff (2004) draws no conclusions"
        report.notes.append(f"{what}: sharpen the guideline before labelling more")


def _shown(number: float) -> float | None:
    return None if math.isnan(number) else round(number, 4)


@dataclass(frozen=True)
class _Joined:
    """Writes the favourite of several columns into one."""

    label: str
    columns: tuple[str, ...]
    resolve: Literal["majority", "first", "all"]
    unsure: Literal["keep", "drop"]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        shares = batch.attached["share"].tolist()
        for item, place, share in zip(batch.items, batch.attached["place"].tolist(), shares, strict=True):
            given = [column(item.value, name) for name in self.columns]
            known = [answer for answer in given if answer not in (None, "")]
            if self.resolve == "all":
                for answer in known:
                    parcel.keep(item, {**item.value, self.label: answer})
                continue
            first = self.resolve == "first" and bool(known)
            if place < 0 and not first:
                _unsure(parcel, item, self.unsure, "no_majority" if known else "nothing_said")
                continue
            answer = known[0] if first else given[place]
            parcel.keep(item, {**item.value, self.label: answer, "agreement": round(share, 4)})
        return parcel


def _agreement(rows: Frame, config: LabelConfig) -> Outcome:
    ((_, ratings, people),) = _ratings(rows, config.annotators)
    if not len(ratings.classes):
        where = ", ".join(source.name for source in rows.sources)
        raise DataError(f"no answer in the columns {', '.join(config.annotators)}", where=where, code="no_label")
    report = Report()
    _describe_agreement(report, "", ratings, people, config.level)
    codes, shares = majority(ratings)
    place = np.where(codes >= 0, (ratings.codes_NA == codes[:, None]).argmax(axis=1), -1)
    work = _Joined(config.label, config.annotators, config.resolve, config.unsure)
    return Outcome(report, rows.scan(work, "Writing", {"place": place, "share": shares}))


# Models


@dataclass(frozen=True)
class _Unlabelled:
    """The text of each row that is to be labelled, as a line; null for the others."""

    label: str
    column: str | None
    relabel: bool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            has = column(item.value, self.label) not in (None, "", []) and not self.relabel
            text = column(item.value, self.column) if self.column else text_of(item.value)
            shown = text if isinstance(text, str) and text.strip() and not has else None
            parcel.keep_line(item.file, item.line, orjson.dumps([shown, has]), "text")
        return parcel


@dataclass(frozen=True)
class _Write:
    """Writes answers into rows: the attached JSON is {column: value}, a reason for none, or null."""

    unsure: Literal["keep", "drop"]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item, answer in zip(batch.items, batch.attached["answer"], strict=True):
            found = orjson.loads(answer)
            if found is None:
                parcel.keep(item)
            elif isinstance(found, str):
                _unsure(parcel, item, self.unsure, found)
            else:
                parcel.tally.count("labelled")
                parcel.keep(item, {**item.value, **found})
        return parcel


def _unsure(parcel: Parcel, item: Item, what: Literal["keep", "drop"], reason: str) -> None:
    if what == "drop":
        parcel.drop(item, reason)
    else:
        parcel.tally.count(reason)
        parcel.keep(item)


def _blocks(rows: Frame, config: LabelConfig, job: Job, judge: Any) -> NDArray[Any]:
    """For each row what `judge` (texts -> answers) makes of its text, as JSON; object [rows]."""
    found: list[bytes] = []
    with job.console.progress("Labelling") as bar:
        for parcel in rows.scan(_Unlabelled(config.label, config.text, config.relabel), "Reading rows"):
            lines = [orjson.loads(line) for line in bytes(parcel.lines.get("text", b"")).split(b"\n")[:-1]]
            for start in range(0, len(lines), _ASKED_AT_ONCE):
                block = lines[start : start + _ASKED_AT_ONCE]
                texts = [text for text, _ in block if text is not None]
                answers = iter(judge(texts) if texts else ())
                for text, has in block:
                    found.append(orjson.dumps(None if has else "no_text" if text is None else next(answers)))
                bar.advance(len(block))
    return np.array([line.decode() for line in found], object)


def _by_endpoint(rows: Frame, config: LabelConfig, job: Job) -> Outcome:
    ask = job.tool("ask")
    question = _question(config)

    def judge(texts: list[str]) -> list[Json]:
        chats = [question.chat(text) for text in texts for _ in range(config.votes)]
        answers = ask(chats, question.schema)
        return [_answer(answers[n * config.votes : (n + 1) * config.votes], config) for n in range(len(texts))]

    return _labelled(rows, config, _blocks(rows, config, job, judge))


def _answer(answers: Sequence[str], config: LabelConfig) -> Json:
    """The columns of a row, or why there are none."""
    found = verdict(answers)
    if found is None:
        return "no_answer"
    if config.answer_schema:
        return {**found.answer, **({"confidence": round(found.share, 4)} if config.votes > 1 else {})}
    said = found.answer.get("confidence")
    sure = found.share if config.votes > 1 else float(said) if isinstance(said, int | float) else 0.0
    if sure < config.min_confidence:
        return "unsure"
    return {config.label: found.answer.get("label"), "confidence": round(sure, 4)}


def _by_model(rows: Frame, config: LabelConfig, job: Job) -> Outcome:
    choose = job.tool("choose")
    prompt = f"{_read(config.guideline).strip()}\n\nLabels: {', '.join(config.labels)}\n\nText: TEXT\n\nLabel:"

    def judge(texts: list[str]) -> list[Json]:
        logprobs = np.asarray(choose([prompt.replace("TEXT", text) for text in texts], config.labels))
        best = logprobs.argmax(axis=1)
        sure = np.exp(logprobs[np.arange(len(texts)), best]).tolist()
        return [
            {config.label: config.labels[code], "confidence": round(share, 4)}
            if share >= config.min_confidence
            else "unsure"
            for code, share in zip(best.tolist(), sure, strict=True)
        ]

    return _labelled(rows, config, _blocks(rows, config, job, judge))


def _labelled(rows: Frame, config: LabelConfig, answers: NDArray[Any]) -> Outcome:
    report = Report()
    found = [orjson.loads(answer) for answer in answers]
    given = [answer for answer in found if isinstance(answer, dict)]
    names: dict[str, int] = {}
    for answer in given:
        name = answer.get(config.label)
        key = name if isinstance(name, str) else orjson.dumps(name).decode()
        names[key] = names.get(key, 0) + 1
    report.summary["labelled"] = len(given)
    report.summary["without a label"] = sum(isinstance(answer, str) for answer in found)
    if not config.answer_schema and names:
        report.tables.append(Table("Labels", [{"label": name, "rows": n} for name, n in sorted(names.items())]))
        sure = np.array([answer["confidence"] for answer in given])
        bars, edges = np.histogram(sure, 10, (0, 1))
        report.charts.append(Chart("Confidence", [f"{edge:.1f}" for edge in edges[:-1]], bars.tolist(), x="confidence"))
    return Outcome(report, rows.scan(_Write(config.unsure), "Writing", {"answer": answers}))


def _question(config: LabelConfig) -> Question:
    guideline = _read(config.guideline)
    if not config.answer_schema:
        return Question.of_labels(guideline, config.labels, multiple=config.multiple)
    try:
        schema = orjson.loads(_read(config.answer_schema))
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error.msg}", where=config.answer_schema) from error
    if not isinstance(schema, dict) or cast(dict[str, Any], schema).get("type") != "object":
        raise ConfigError("the schema of an answer must be an object's", where=config.answer_schema)
    return Question(guideline, cast(dict[str, Any], schema))


def _read(name: str | None) -> str:
    try:
        return Path(str(name)).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot be read: {why}", where=str(name), fix="Name a text file") from error


VERB = Verb(
    name="label",
    config=LabelConfig,
    run=label,
    about="Give rows labels: by Label Studio, an endpoint with a guideline or a local model; and measure agreement.",
    examples=(
        "luthier data label my.jsonl --method export --labels spam ham --tasks tasks.json --output tasks.jsonl",
        "luthier data label project-1.json --method import --output labelled.jsonl --report agreement.json",
        "luthier data label my.jsonl --method endpoint --labels spam ham --guideline guideline.md "
        "--base_url http://127.0.0.1:8000/v1 --endpoint.model qwen --output labelled.jsonl",
        "luthier data label my.jsonl --method pseudo --labels spam ham --guideline guideline.md --model RUN "
        "--min_confidence 0.9 --output labelled.jsonl",
        "luthier data label pairs.json --method agreement --annotators a1 a2 a3 --report agreement.json",
    ),
    tools=("ask", "choose"),
    sample={"method": "export", "labels": ["odd", "even"]},
)
