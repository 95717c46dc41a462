"""Columns of a row for a task, whatever the case of their names, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping

from luthier.base.records import Json
from luthier.data.messages import Reader

Columns = Mapping[str, tuple[str, Json]]
"""Columns in lower case, each with its own name and its value."""

CHATS = ("messages", "conversations", "conversation")
TEXTS = ("text", "input", "sentence", "content", "query", "question")
LABELS = ("label", "labels")
MORE_LABELS = ("category", "class", "intent", "sentiment", "target")
"""Label columns that count when classification is asked for; elsewhere they may be metadata."""
TAGS = ("tags", "ner_tags", "labels", "label", "pos_tags")
FIRST = ("sentence1", "text1", "sentence_a", "premise")
SECOND = ("sentence2", "text2", "sentence_b", "hypothesis")
SCORES = ("score", "similarity", "similarity_score")


def columns_of(value: Mapping[str, Json]) -> Columns:
    """The columns of a row; null values count as absent."""
    return {key.lower(): (key, item) for key, item in value.items() if item is not None}


def first(low: Columns, names: tuple[str, ...]) -> tuple[str, Json] | None:
    """The first of some columns that a row has: its own name and its value."""
    return next((low[name] for name in names if name in low), None)


def text_of(reader: Reader, low: Columns, names: tuple[str, ...], what: str) -> str:
    """The text of the first of some columns.

    Raises:
        BadRow: `missing_key` when there is none of them, `empty_text`; `what` says what was looked for.
    """
    found = first(low, names)
    if found is None:
        raise reader.fail("missing_key", f"{what} is expected under one of {', '.join(names)}")
    text = reader.text(found[1], found[0])
    if not text.strip():
        raise reader.fail("empty_text", f"{what} is empty", found[0])
    return text


def number_of(reader: Reader, value: Json, path: str) -> float:
    """A number or the text of one.

    Raises:
        BadRow: `not_a_number`.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise reader.fail("not_a_number", "a number is expected", path)
    return number
