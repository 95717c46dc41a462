"""Classifying or tagging the rows of a file with a model that was trained to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.base.errors import ConfigError
from luthier.base.records import BadRow, Fault, Json, Labelled, Tagged
from luthier.base.rundir import RunDir
from luthier.data.batch import Group, collate, whole
from luthier.data.config import DataConfig
from luthier.data.pack import micro_batches
from luthier.data.plain import Plain
from luthier.data.render import Renderer
from luthier.data.row import Row
from luthier.data.sources import open_rows, parse_spec
from luthier.data.tasks import read_as
from luthier.model import methods
from luthier.model.heads import learned_head
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.classify import Classification
from luthier.objectives.config import SeqCls, TokenCls
from luthier.objectives.tag import Tagging
from luthier.run.result import Usable

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
    plain = Plain(tokenizer, model.max_length, "truncate")
    if head.kind == "token":
        return Predictor(model, Tagging(TokenCls(), head.labels, plain))
    chats = Renderer(tokenizer) if tokenizer.chat_template is not None else None
    problem = head.problem or ("regression" if len(head.labels) == 1 else "single_label_classification")
    return Predictor(model, Classification(SeqCls(), head.labels, problem, None, plain, chats))


def predict_file(dataset: str, result: Path, predictor: Predictor, progress: Callable[[int], None]) -> str:
    """Give every row of a data set its label, into a JSON-lines file, one line a row; returns what was done.

    A row needs no label; one that has some keeps it as `reference`.  Lines that are there already are not written
    again.  A row that cannot be read gets a line with its `error`.

    Raises:
        DataError: the data set cannot be read.
        ConfigError: `result` is a folder, or has more lines than the data set rows.
    """
    if result.is_dir():
        raise ConfigError("is a folder", where=str(result), fix="Name a file in it as --result_path")
    result.parent.mkdir(parents=True, exist_ok=True)
    data = DataConfig()
    rows = open_rows(parse_spec(dataset, data.hub), data)
    results = RunDir(result.parent)
    done = len(results.read_rows(result.name))
    if done > len(rows):
        raise ConfigError(
            f"has {done} lines for {len(rows)} rows", where=str(result), fix="Give another --result_path, or remove it"
        )
    progress(done)
    errors = 0
    for start in range(done, len(rows), _AT_ONCE):
        chunk = [rows[index] for index in range(start, min(start + _AT_ONCE, len(rows)))]
        for index, line in enumerate(predict(chunk, predictor), start):
            errors += "error" in line
            results.append_json(result.name, {"index": index, **line})
        progress(len(chunk))
    before = f", {done} lines were there before" if done else ""
    return f"{len(rows) - done - errors} predictions and {errors} errors{before}: {result}"


def predict(rows: list[Row], predictor: Predictor) -> list[dict[str, Json]]:
    """What is predicted for each row, in order."""
    lines: list[dict[str, Json]] = [{} for _ in rows]
    groups: list[Group] = []
    owners: list[int] = []
    for number, row in enumerate(rows):
        try:
            line, group = _asked(row, predictor.objective)
        except BadRow as error:
            lines[number] = {"error": str(error)}
            continue
        lines[number] = line
        groups.append(group)
        owners.append(number)
    bins = micro_batches([len(group) for group in groups], _TOKENS, 1, padded=not predictor.model.packed)
    for members in bins:
        batch = collate([groups[index] for index in members], members).to(predictor.model.device)
        with torch.no_grad():
            scores = predictor.model.scores(batch)
        for member, answer in _answers(predictor.objective, scores, [groups[index] for index in members], members):
            lines[owners[member]].update(answer)
    return lines


def _asked(row: Row, objective: Classification | Tagging) -> tuple[dict[str, Json], Group]:
    """What is known of a row, and its sequence.  Raises BadRow."""
    if isinstance(row.value, Fault):
        raise BadRow(row.value)
    labelled = True
    try:
        record = read_as(row.value, row.where, [], objective.task)
    except BadRow as error:
        if error.fault.code != "wrong_task":
            raise
        labelled = False
        record = read_as(_with_label(row.value, objective), row.where, [], objective.task)
    if isinstance(objective, Tagging):
        assert isinstance(record, Tagged)
        line: dict[str, Json] = {"tokens": list[Json](record.tokens)}
        if labelled:
            line["reference"] = list[Json](record.tags)
        return line, objective.untagged(record)
    assert isinstance(record, Labelled)
    line = {"text": record.text}
    if record.pair is not None:
        line["pair"] = record.pair
    if labelled:
        line["reference"] = list[Json](record.label) if isinstance(record.label, tuple) else record.label
    words = objective.words(record)
    return line, Group((whole(words.ids[: objective.plain.max_length], [0.0], 1.0, words.segments),))


def _with_label(value: dict[str, Json], objective: Classification | Tagging) -> dict[str, Json]:
    if isinstance(objective, Classification):
        return {**value, "label": "?"}
    tokens = value.get("tokens")
    words: list[Json] = tokens if isinstance(tokens, list) else list(str(value.get("text", "")).split())
    return {"tokens": words, "tags": list[Json](["O"] * len(words))}


def _answers(
    objective: Classification | Tagging, scores: torch.Tensor, groups: list[Group], members: list[int]
) -> Iterator[tuple[int, dict[str, Json]]]:
    if isinstance(objective, Classification):
        for member, scores_C in zip(members, scores.cpu(), strict=True):
            yield member, objective.answer(scores_C)
        return
    counts = [int((group.sequences[0].weights != 0).sum()) for group in groups]
    for member, tags_R in zip(members, scores.argmax(1).cpu().split(counts), strict=True):
        yield member, objective.answer([objective.labels[number] for number in tags_R.tolist()])
