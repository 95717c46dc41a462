"""Give rows labels: through Label Studio, an endpoint with a guideline, or a local model; and measure agreement."""

from __future__ import annotations

from collections.abc import Sequence
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
from luthier.prepare.annotators import Join, Resolve, Unsure, describe, ratings_of
from luthier.prepare.frame import Frame
from luthier.prepare.guideline import Question, verdict
from luthier.prepare.labelling import Import, Seen, Unlabelled, WriteAnswers, WriteTasks
from luthier.prepare.models import ModelVerbConfig
from luthier.prepare.parcel import Tally
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.studio_json import Form, Kind, tasks_file
from luthier.prepare.verb import Job, Outcome, Verb
from luthier.score.agreement import (
    Level,
    majority,
)


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
    unsure: Unsure = "drop"
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
    resolve: Resolve = "majority"
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


def _export(rows: Frame, config: LabelConfig) -> Outcome:
    labels = config.labels
    if not labels and config.form == "choices":
        labels = tuple(sorted(rows.measure(Seen(config.label), "Reading labels").tally.counts))
    form = Form(config.form, config.text or "text", labels, config.other)
    if config.interface:
        write_atomic(Path(config.interface).expanduser(), form.config().encode())
    stream = rows.scan(WriteTasks(form, config.label, config.text), "Writing tasks")
    report = Report(notes=[f"Labelling interface:\n{form.config()}"])
    if not config.tasks:
        return Outcome(report, stream)
    path = Path(config.tasks).expanduser()

    def kept():
        tasks: list[bytes] = []
        for parcel in stream:
            tasks.extend(parcel.lines.get("", b"").split(b"\n")[:-1])
            yield parcel
        write_atomic(path, tasks_file(tasks))

    return Outcome(report, kept())


def _import(rows: Frame, config: LabelConfig) -> Outcome:
    report = Report()
    for name, ratings, people in ratings_of(rows, ()):
        describe(report, name, ratings, people, config.level)

    def noted():
        counted = Tally()
        for parcel in rows.scan(Import(config.resolve), "Writing rows"):
            counted.add(parcel.tally)
            yield parcel
        ignored = {name[9:]: n for name, n in counted.counts.items() if name.startswith("ignored: ")}
        if ignored:
            named = ", ".join(f"{name} ({n})" for name, n in ignored.items())
            report.notes.append(f"Results that have no place in a row were left out: {named}")

    return Outcome(report, noted())


def _agreement(rows: Frame, config: LabelConfig) -> Outcome:
    ((_, ratings, people),) = ratings_of(rows, config.annotators)
    if not len(ratings.classes):
        where = ", ".join(source.name for source in rows.sources)
        raise DataError(f"no answer in the columns {', '.join(config.annotators)}", where=where, code="no_label")
    report = Report()
    describe(report, "", ratings, people, config.level)
    codes, shares = majority(ratings)
    place = np.where(codes >= 0, (ratings.codes_NA == codes[:, None]).argmax(axis=1), -1)
    work = Join(config.label, config.annotators, config.resolve, config.unsure)
    return Outcome(report, rows.scan(work, "Writing", {"place": place, "share": shares}))


def _blocks(rows: Frame, config: LabelConfig, job: Job, judge: Any) -> NDArray[Any]:
    """For each row what `judge` (texts -> answers) makes of its text, as JSON; object [rows]."""

    def answered(block: list[tuple[str | None, bool]]) -> list[str]:
        texts = [text for text, _ in block if text is not None]
        answers = iter(judge(texts) if texts else ())
        found = (None if has else "no_text" if text is None else next(answers) for text, has in block)
        return [orjson.dumps(answer).decode() for answer in found]

    work = Unlabelled(config.label, config.text, config.relabel)
    return np.array(job.ask_for_all("Labelling", rows, work, answered), object)


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
    left = sum(answer is None for answer in found)
    if left:
        what = f"{left:,} {'row has' if left == 1 else 'rows have'} a value in the column {config.label} already"
        report.notes.append(f"{what}, and nothing was asked about them: --relabel asks all the same.")
    if not config.answer_schema and names:
        report.tables.append(Table("Labels", [{"label": name, "rows": n} for name, n in sorted(names.items())]))
        sure = np.array([answer["confidence"] for answer in given])
        bars, edges = np.histogram(sure, 10, (0, 1))
        report.charts.append(Chart("Confidence", [f"{edge:.1f}" for edge in edges[:-1]], bars.tolist(), x="confidence"))
    return Outcome(report, rows.scan(WriteAnswers(config.unsure), "Writing", {"answer": answers}))


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
    files=("guideline", "answer_schema"),
    tools=("ask", "choose"),
    sample={"method": "export", "labels": ["odd", "even"]},
)
