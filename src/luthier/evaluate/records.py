"""Rows as models are trained on them, as questions: texts with labels, words with tags, texts that are alike or not.

They are read by the shapes that training recognises; an evaluation leaves no row out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import BadRow, Fault, Json, Labelled, Message, Record, Similar, Tagged
from luthier.base.records import Task as Purpose
from luthier.data.checks import renamed
from luthier.data.config import DataConfig
from luthier.data.sources import DatasetSpec, open_rows
from luthier.data.survey import names_of
from luthier.data.tasks import read_as
from luthier.evaluate.config import SetConfig
from luthier.evaluate.files import subsets
from luthier.evaluate.mcq import ACCURACY
from luthier.evaluate.specialist import Prediction, Skill
from luthier.evaluate.task import MACRO_F1, PEARSON, R2, SPEARMAN, How, Item, Rates, Task, unmarked
from luthier.score import entities
from luthier.score.ranking import Ranked, average_precision, ndcg, reciprocal_rank

R = TypeVar("R", bound=Record)
_K = 10
ENDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".conll", ".bio", ".bmes", ".iob2", ".conllu")


def labelled(name: str, folder: Path, config: SetConfig, skill: Skill) -> list[Task]:
    """Texts with labels, for a model that classifies."""

    def item(record: Labelled) -> Item:
        if skill.problem == "regression":
            wanted = (str(float(str(record.label))),)
        else:
            wanted = names_of(record.label)
        if skill.problem == "single_label_classification" and len(wanted) != 1:
            raise ValueError(f"has {len(wanted)} labels, the model gives one")
        text = record.text if record.pair is None else f"{record.text}\n{record.pair}"
        return Item("", (Message("user", text),), wanted, record=record)

    joint = (R2, PEARSON, SPEARMAN) if skill.problem == "regression" else (MACRO_F1,)
    classes = skill.labels if skill.problem == "single_label_classification" else ()
    return list(
        _tasks(name, folder, config, _Reading("classification", Labelled, item, skill.columns), "label", classes, joint)
    )


def tagged(name: str, folder: Path, config: SetConfig, skill: Skill) -> list[Task]:
    """Words with tags, for a model that tags them."""

    def item(record: Tagged) -> Item:
        record = replace(record, tags=entities.named(record.tags, skill.labels))
        return Item("", (Message("user", " ".join(record.tokens)),), (" ".join(record.tags),), record=record)

    return list(
        _tasks(name, folder, config, _Reading("tagging", Tagged, item, skill.columns), "tag", skill.labels, (MACRO_F1,))
    )


def in_order(name: str, folder: Path, config: SetConfig, skill: Skill) -> list[Task]:
    """Queries, each with texts that answer it and texts that do not, to be put in order."""
    return similar(name, folder, config, replace(skill, kind="pairs"))


def similar(name: str, folder: Path, config: SetConfig, skill: Skill) -> list[Task]:
    """Texts that are alike or not.

    Two texts with a score are compared.  A query with texts that answer it and texts that do not is to put them in
    order; without the latter it is to find its texts among those of all rows, which a model that scores pairs cannot.
    """

    def item(record: Similar) -> Item:
        if record.score is not None and record.positives:
            text = f"{record.query}\n{record.positives[0]}"
            return Item("", (Message("user", text),), (str(record.score),), record=record)
        if not record.positives:
            raise ValueError("has no text that answers the query")
        return Item("", (Message("user", record.query),), record.positives, record=record)

    tasks: list[Task] = []
    reading = _Reading("similarity", Similar, item, skill.columns)
    for task in _tasks(name, folder, config, reading, "relate", joint=(PEARSON, SPEARMAN)):
        rows = [one.record for one in task.items if isinstance(one.record, Similar)]
        scored = {row.score is not None for row in rows}
        if len(scored) > 1:
            raise ConfigError("some rows have a score and some not", where=f"{name} {task.subset}", code="mixed_rows")
        if scored == {True}:
            tasks.append(task)
        elif all(row.negatives for row in rows) and skill.kind == "pairs":
            tasks.append(replace(task, how="rank", joint=()))
        elif skill.kind == "pairs":
            raise ConfigError(
                "to put texts in order takes some that do not answer, beside those that do",
                where=f"{name} {task.subset}",
                fix='Give each row "neg" beside "pos", or two texts with a score',
                code="no_negatives",
            )
        else:
            texts = dict.fromkeys(text for row in rows for text in (*row.positives, *row.negatives))
            documents = tuple((text, text) for text in texts)
            tasks.append(replace(task, how="retrieve", joint=(), documents=documents))
    return tasks


@dataclass(frozen=True, slots=True)
class _Reading(Generic[R]):
    """How the rows of one purpose are read, and asked."""

    purpose: Purpose
    kind: type[R]
    item: Callable[[R], Item]
    """From a record; ValueError, with the end of a sentence about the row, where it cannot be asked."""
    columns: Mapping[str, str]


def _tasks(
    name: str,
    folder: Path,
    config: SetConfig,
    reading: _Reading[R],
    how: How,
    classes: tuple[str, ...] = (),
    joint: tuple[str, ...] = (),
) -> Iterator[Task]:
    """A file, or each file of a folder that is wanted."""
    if config.few_shot_num:
        raise ConfigError("only models that talk are shown examples", where="--few_shot_num", fix="Leave it out")
    ending = f"_{config.split}" if config.split else ""
    for subset, path in subsets(folder, config.subset_list, ending, name, ends=ENDS).items():
        items = tuple(_items(path, reading, config.limit))
        yield Task(name, subset, items, how, unmarked, 0, classes, joint, config.metric_list)


def _items(path: Path, reading: _Reading[R], limit: int | None) -> Iterator[Item]:
    rows = open_rows(DatasetSpec(str(path), "local", str(path)), DataConfig())
    for number in range(len(rows) if limit is None else min(limit, len(rows))):
        row = rows[number]
        try:
            if isinstance(row.value, Fault):
                raise BadRow(row.value)
            record = read_as(renamed(row.value, reading.columns), row.where, [], reading.purpose)
            assert isinstance(record, reading.kind), "a purpose has one kind of record"
            yield replace(reading.item(record), key=str(number))
        except BadRow as error:
            raise DataError(str(error.fault.message), where=str(row.where), code=error.fault.code) from error
        except ValueError as error:
            raise DataError(str(error), where=str(row.where), code="bad_question") from error


def mark_labels(item: Item, prediction: Prediction) -> tuple[str, Rates, dict[str, Json]]:
    """What was predicted for a text, what it is worth, and the particulars."""
    wanted = set(item.references)
    if "value" in prediction:
        found = float(str(prediction["value"]))
        error = found - float(item.references[0])
        return f"{found:.6f}", {"mse": (error**2, 1.0), "mae": (abs(error), 1.0)}, {}
    chances = prediction["probabilities"]
    assert isinstance(chances, dict), "classes come with their probabilities"
    detail: dict[str, Json] = {"options": list[Json](chances), "chances": list(chances.values())}
    if "label" in prediction:
        label = str(prediction["label"])
        return label, {ACCURACY: (float(label in wanted), 1.0)}, detail
    several = prediction["labels"]
    given = {str(one) for one in several} if isinstance(several, list) else set[str]()
    rates: dict[str, tuple[float, float]] = {"exact": (float(given == wanted), 1.0)}
    rates |= _f1(len(given & wanted), len(given), len(wanted))
    counts: dict[str, Json] = {
        name: [int(name in given & wanted), int(name in given), int(name in wanted)] for name in sorted(given | wanted)
    }
    return ", ".join(sorted(given)), rates, {"chances_of": chances, "classes": counts}


def mark_tags(item: Item, prediction: Prediction, scheme: entities.Scheme) -> tuple[str, Rates, dict[str, Json]]:
    """What was predicted for words, what it is worth, and the particulars.

    Args:
        scheme: of all tags; none for plain classes, which are counted word by word.
    """
    record, told = item.record, prediction["tags"]
    assert isinstance(record, Tagged) and isinstance(told, list)
    found, wanted = [str(tag) for tag in told], list(record.tags)
    rates: dict[str, tuple[float, float]] = {}
    if scheme != "none":
        each = entities.by_type([found], [wanted])
        rates |= _f1(*(sum(counts[n] for counts in each.values()) for n in range(3)))
    else:
        each = {
            tag: (
                sum(one == other == tag for one, other in zip(found, wanted, strict=True)),
                found.count(tag),
                wanted.count(tag),
            )
            for tag in sorted({*found, *wanted})
        }
    rates[ACCURACY] = (float(sum(one == other for one, other in zip(found, wanted, strict=True))), float(len(wanted)))
    detail: dict[str, Json] = {
        "tags": list[Json](found),
        "wanted": list[Json](wanted),
        "classes": {name: list[Json](counts) for name, counts in each.items()},
    }
    return " ".join(found), rates, detail | ({"cut": True} if "unseen" in prediction else {})


def _f1(right: int, found: int, wanted: int) -> dict[str, tuple[float, float]]:
    """Precision, recall and F1, so that those of many rows are the micro averages."""
    return {
        "precision": (float(right), float(found)),
        "recall": (float(right), float(wanted)),
        "f1": (2.0 * right, float(found + wanted)),
    }


def mark_order(item: Item, scores: list[float]) -> Rates:
    """How the texts of a query rank: first those that answer it, in the order of `scores`.

    Of equal scores the later text comes first, so a model that tells nothing apart is not praised.
    """
    record = item.record
    assert isinstance(record, Similar)
    names = [f"{number:06d}" for number in range(len(scores))]
    gains = record.positive_scores or (1.0,) * len(record.positives)
    ranked = Ranked.of(dict(zip(names, scores, strict=True)), dict(zip(names, gains, strict=False)))
    values = {"ndcg@10": ndcg(ranked, _K), "mrr@10": reciprocal_rank(ranked, _K), "map": average_precision(ranked)}
    return {name: (value, 1.0) for name, value in values.items()}
