"""Rows for other tasks than language modelling: preferences, judgements, labels, tags, similarity, prompts.

Every row has one task it is evidently meant for.  A task can also be asked for, because some rows suit several: a
question with an answer is a chat, and a prompt with a reference.  Column names count without their case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from luthier.base.records import (
    Fault,
    Json,
    Record,
    Task,
    Where,
)
from luthier.data.columns import CHATS, FIRST, MORE_LABELS, SCORES, SECOND, TAGS, TEXTS, Columns, columns_of
from luthier.data.formats import read_record
from luthier.data.labels import are_tags, classification, spans_in, tagging
from luthier.data.messages import Reader
from luthier.data.preferences import SIDES, judged, preference
from luthier.data.prompts import prompt
from luthier.data.similar import GOOD, QUERIES, similarity


def task_of(value: Mapping[str, Json]) -> Task:
    """The task a row is evidently meant for; `language` for everything that gives nothing away."""
    low = {key.lower(): item for key, item in value.items() if item is not None}
    if spans_in(columns_of(value)):
        return "tagging"
    found = _task_by_name(tuple(low))
    if found is not None:
        return found
    label = low.get("label", low.get("labels"))
    if any(name in low for name in CHATS) and label is not None:
        return "kto" if isinstance(label, bool) else "classification"
    if low.keys() & set(FIRST) and low.keys() & set(SECOND):
        return "similarity" if isinstance(label, float) or low.keys() & set(SCORES) else "classification"
    if "prompt" in low and "completion" in low and label is not None:
        return "kto"
    if isinstance(label, list) and are_tags(label, low.get("text")):
        return "tagging"
    return "classification" if label is not None and low.keys() & {"text", "input", "sentence"} else "language"


def has_class(value: Mapping[str, Json]) -> bool:
    """Whether a row that gives nothing away has a text and a column that is usually a class, of one short value."""
    low = {key.lower(): item for key, item in value.items() if item is not None}
    found = next((low[name] for name in MORE_LABELS if name in low), None)
    return isinstance(found, str | int) and bool(low.keys() & set(TEXTS))


@lru_cache(maxsize=4096)
def _task_by_name(columns: tuple[str, ...]) -> Task | None:
    """The task that names of columns alone give away."""
    keys = set(columns)
    if any({good, bad} <= keys for good, bad in SIDES):
        return "preference"
    if "rejected_response" in keys:
        return "similarity" if "label" in keys else "preference"
    if "kto_tag" in keys:
        return "kto"
    if "tokens" in keys and keys & set(TAGS):
        return "tagging"
    if {"query", "pos"} <= keys or {"query", "neg"} <= keys or (keys & set(QUERIES) and keys & set(GOOD)):
        return "similarity"
    if {"input", "reward"} <= keys or {"prompt", "reward"} <= keys:
        return "prompt" if keys & {"action", "state"} else "classification"
    if "prompt" in keys and not keys & {*CHATS, "completion", "response", "chosen", "text", "label"}:
        return "prompt"
    if keys & {*CHATS, *FIRST, "label", "labels"} or {"prompt", "completion"} <= keys:
        return None
    return "language"


def read_as(
    value: Mapping[str, Json], where: Where, repairs: list[Fault] | None = None, task: Task | None = None
) -> Record:
    """Read a row for a task; None takes the one it is evidently meant for.

    Raises:
        BadRow: with the code and the path of the first fault; `wrong_task` when nothing in the row suits the task.
    """
    wanted = task or task_of(value)
    if wanted == "language":
        return read_record(value, where, repairs)
    reader = Reader(where, repairs)
    plain = {key: item for key, item in value.items() if item is not None}
    return _READERS[wanted](reader, columns_of(value), plain)


_READERS: dict[Task, Callable[[Reader, Columns, Mapping[str, Json]], Record]] = {
    "preference": preference,
    "kto": judged,
    "classification": classification,
    "tagging": tagging,
    "similarity": similarity,
    "prompt": prompt,
}
