"""Classifying or tagging the rows of a file with a model that was trained to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from luthier.base.records import BadRow, Fault, Json, Labelled, Record, Tagged, Where
from luthier.base.rundir import RunDir
from luthier.data.batch import Batch, Group, Tokens, whole
from luthier.data.checks import renamed
from luthier.data.config import DataConfig
from luthier.data.plain import Plain
from luthier.data.render import Renderer
from luthier.data.row import Row
from luthier.data.sources import drawn_rows
from luthier.data.tasks import read_as
from luthier.generate.passes import each
from luthier.model import methods
from luthier.model.heads import Head, learned_head
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.classify import Classification, Problem
from luthier.objectives.config import SeqCls, TokenCls
from luthier.objectives.tag import Tagging, words_of
from luthier.run.result import Usable
from luthier.run.resultfile import drop_errors, other_results, put_in_order, standing

_AT_ONCE = 512
"""Rows that are sorted by length and packed together."""
_TOKENS = 4096
"""Tokens of a batch."""


@dataclass(frozen=True)
class Predictor:
    """A model that classifies, and the objective that says how rows are written and scores are read."""

    model: Model
    objective: Classification | Tagging


def open_predictor(usable: Usable, device: torch.device) -> Predictor:
    """Open what a run made.

    Raises:
        ModelError: a file is missing or does not fit.
    """
    head = learned_head(usable.model)
    assert head is not None, "only models that classify are opened"
    tokenizer = load_tokenizer(usable.tokenizer)
    model = load_model(usable.model, device, tokenizer=tokenizer, trained=False, head=head)
    methods.attach(model, usable.model.adapters)
    model.eval_mode()
    longest = min(usable.trained.data.max_length, model.max_length) if usable.trained else model.max_length
    plain = Plain(tokenizer, longest, "truncate")
    if head.kind == "token":
        return Predictor(model, Tagging(TokenCls(), head.labels, plain))
    chats = Renderer(tokenizer) if tokenizer.chat_template is not None else None
    trained = usable.trained.objective if usable.trained else None
    config = trained if isinstance(trained, SeqCls) else SeqCls()
    return Predictor(model, Classification(config, head.labels, problem_of(head), None, plain, chats))


def problem_of(head: Head) -> Problem:
    """What texts are given: what the files say, else a number where there is one score, else one class."""
    return head.problem or ("regression" if len(head.labels) == 1 else "single_label_classification")


Predict = Callable[[list[Row]], list[dict[str, Json]]]
"""What is said of each row; of one that cannot be read, its `error`."""


def predict_file(
    dataset: str,
    result: Path,
    predict: Predict,
    progress: Callable[[int], None],
    read: Callable[[Row], Mapping[str, Json]] | None = None,
) -> str:
    """Say something of every row of a data set, into a JSON-lines file, one line a row; returns what was done.

    Rows whose line is there already are not asked again; those that were errors are.

    Args:
        progress: told how many rows have been dealt with.
        read: what a row's line begins with, by which a row that has changed since is known; may raise BadRow.

    Raises:
        DataError: the data set cannot be read.
        ConfigError: the file has lines about other rows.
    """
    rows = drawn_rows(dataset, DataConfig())
    results = RunDir(result.parent)
    done = standing(result, len(rows))
    if read is not None:
        for index, line in done.items():
            _check_same(line, rows[index], read, result)
    drop_errors(result)
    progress(len(done))
    wanted = [index for index in range(len(rows)) if index not in done]
    errors = 0
    for start in range(0, len(wanted), _AT_ONCE):
        chunk = wanted[start : start + _AT_ONCE]
        for index, line in zip(chunk, predict([rows[index] for index in chunk]), strict=True):
            errors += "error" in line
            results.append_json(result.name, {"index": index, **line})
        progress(len(chunk))
    put_in_order(result)
    before = f", {len(done)} of them from before" if done else ""
    return f"{len(rows) - errors} predictions and {errors} errors{before}: {result}"


def _check_same(line: Mapping[str, Json], row: Row, read: Callable[[Row], Mapping[str, Json]], result: Path) -> None:
    try:
        same = all(line.get(name) == value for name, value in read(row).items())
    except BadRow:
        same = False
    if not same:
        raise other_results(result, f"row {line['index']} of this file is about something else than the data set's")


def read_row(row: Row, predictor: Predictor, columns: Mapping[str, str]) -> dict[str, Json]:
    """What the model is given of a row, as its line tells it; not its label.  Raises BadRow."""
    line, _ = _asked(row, predictor.objective, columns)
    return {name: value for name, value in line.items() if name != "reference"}


def predict(rows: list[Row], predictor: Predictor, columns: Mapping[str, str] | None = None) -> list[dict[str, Json]]:
    """What is predicted for each row, in order.

    A row needs no label; one that has some keeps it as `reference`.  A row that cannot be read gets its `error`.

    Args:
        columns: what columns of the rows are called, and what they mean.
    """
    lines: list[dict[str, Json]] = []
    records: dict[int, Labelled | Tagged] = {}
    for number, row in enumerate(rows):
        try:
            line, records[number] = _asked(row, predictor.objective, columns or {})
            lines.append(line)
        except BadRow as error:
            lines.append({"error": str(error)})
    for number, answer in zip(records, predict_records(list(records.values()), predictor, _TOKENS), strict=True):
        lines[number].update(answer)
    return lines


def predict_records(records: Sequence[Record], predictor: Predictor, at_once: int) -> list[dict[str, Json]]:
    """What is predicted for each record, in order; what stands in it as label or tags is not looked at.

    Args:
        at_once: tokens that are run together.
    """
    objective = predictor.objective
    if isinstance(objective, Tagging):
        return _tags([record for record in records if isinstance(record, Tagged)], predictor.model, objective, at_once)

    def run(batch: Batch) -> Iterator[dict[str, Json]]:
        return map(objective.answer, predictor.model.scores(batch).cpu())

    words = [objective.words(record) for record in records if isinstance(record, Labelled)]
    longest = objective.plain.max_length
    groups = [Group((whole(one.ids[:longest], (0.0,), 1.0, one.segments),)) for one in words]
    return each(predictor.model, groups, run, at_once)


def answered(rows: Sequence[Mapping[str, Json]], predictor: Predictor) -> list[tuple[dict[str, Json], int]]:
    """What is predicted for each row, words of a tagged one included, and the tokens that were read.

    Raises:
        BadRow: a row does not suit the model.
    """
    objective, where = predictor.objective, Where("request", 1)
    records = [read_as(_with_label(dict(row), objective), where, [], objective.task) for row in rows]
    found = predict_records(records, predictor, _TOKENS)
    lines: list[tuple[dict[str, Json], int]] = []
    for record, answer in zip(records, found, strict=True):
        if isinstance(objective, Tagging):
            assert isinstance(record, Tagged)
            size = len(objective.untagged(record).sequences[0].ids)
            lines.append(({"tokens": list[Json](record.tokens), **answer}, size))
        else:
            assert isinstance(record, Labelled)
            lines.append((answer, len(objective.words(record).ids[: objective.plain.max_length])))
    return lines


def token_chances(texts: Sequence[str], predictor: Predictor) -> list[list[list[float]]]:
    """The probability of every tag for every token of each text, as its tokenizer cuts it, control tokens too."""

    def run(batch: Batch) -> Iterator[list[list[float]]]:
        chances_TC = predictor.model.scores(batch).softmax(1).cpu()
        return (part.tolist() for part in chances_TC.split(list(batch.lengths)))

    groups: list[Group] = []
    for words in map(predictor.objective.plain.words, texts):
        every = np.ones(len(words.ids), np.float32)
        groups.append(Group((Tokens(words.ids, every, np.zeros(len(words.ids), np.int32), words.segments),), words.cut))
    return each(predictor.model, groups, run, _TOKENS)


def _tags(records: Sequence[Tagged], model: Model, objective: Tagging, at_once: int) -> list[dict[str, Json]]:
    """A tag for every word; those that the model does not see, because the text is too long, are outside."""

    def run(batch: Batch) -> Iterator[list[int]]:
        found_R = model.scores(batch).argmax(1).cpu()
        counts: list[int] = np.add.reduceat(batch.weights_T.cpu().numpy() != 0, batch.offsets[:-1]).tolist()
        return (part.tolist() for part in found_R.split(counts))

    groups = [objective.untagged(replace(record, weight=1.0)) for record in records]
    outside = "O" if "O" in objective.labels else objective.labels[0]
    answers: list[dict[str, Json]] = []
    for record, found in zip(records, each(model, groups, run, at_once), strict=True):
        tags: list[str] = [outside] * len(record.tokens)
        firsts = words_of(objective.plain, record.tokens).firsts if len(found) < len(tags) else range(len(tags))
        seen = [word for word in firsts if word is not None]
        for word, number in zip(seen, found, strict=True):
            tags[word] = objective.labels[number]
        answer = objective.answer(tags, record)
        if len(seen) < len(tags):
            answer["unseen"] = len(tags) - len(seen)
        answers.append(answer)
    return answers


def _asked(
    row: Row, objective: Classification | Tagging, columns: Mapping[str, str]
) -> tuple[dict[str, Json], Labelled | Tagged]:
    """What is known of a row, and its record.  Raises BadRow."""
    if isinstance(row.value, Fault):
        raise BadRow(row.value)
    value, labelled = renamed(row.value, columns), True
    try:
        record = read_as(value, row.where, [], objective.task)
    except BadRow as error:
        if error.fault.code != "wrong_task":
            raise
        labelled = False
        record = read_as(_with_label(value, objective), row.where, [], objective.task)
    if isinstance(objective, Tagging):
        assert isinstance(record, Tagged)
        line: dict[str, Json] = {"text": record.text} if record.places else {}
        line["tokens"] = list[Json](record.tokens)
        if labelled:
            line["reference"] = list[Json](record.tags)
        return line, record
    assert isinstance(record, Labelled)
    line = {"text": record.text}
    if record.pair is not None:
        line["pair"] = record.pair
    if labelled:
        line["reference"] = list[Json](record.label) if isinstance(record.label, tuple) else record.label
    return line, record


def _with_label(value: dict[str, Json], objective: Classification | Tagging) -> dict[str, Json]:
    if isinstance(objective, Classification):
        return {**value, "label": "?"}
    tokens = value.get("tokens")
    if isinstance(tokens, list):
        return {"tokens": tokens, "tags": list[Json](["O"] * len(tokens))}
    return {**value, "spans": list[Json]()}
