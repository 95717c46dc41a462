"""Rows that say which texts are alike: pairs with a score, queries with texts that answer them or do not."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.base.records import Json, Similar
from luthier.data.columns import CHATS, FIRST, SCORES, SECOND, Columns, first, number_of, text_of
from luthier.data.formats import row_weight
from luthier.data.messages import Reader
from luthier.data.prompts import conversation

QUERIES = ("query", "anchor", "question")
GOOD = ("positive", "positives")
"""Columns of texts like the query, beside `pos`."""


def similarity(reader: Reader, low: Columns, value: Mapping[str, Json]) -> Similar:
    """Two texts with or without a score, or a query with texts like it and unlike it.

    Raises:
        BadRow: `wrong_task`, `missing_key`, `empty_text`, `scores_mismatch`, `not_a_number`.
    """
    weight = row_weight(reader, value)
    if any(name in low for name in CHATS):
        return _similar_chat(reader, low, value, weight)
    if first(low, FIRST) and first(low, SECOND):
        one, other = text_of(reader, low, FIRST, "the first text"), text_of(reader, low, SECOND, "the second text")
        score = first(low, (*SCORES, "label"))
        if score is None:
            return Similar(one, (other,), (), reader.where, weight=weight)
        return Similar(one, (other,), (), reader.where, number_of(reader, score[1], score[0]), weight=weight)
    query = text_of(reader, low, QUERIES, "a query")
    good = _several(reader, low, ("pos", *GOOD))
    bad = _several(reader, low, ("neg", "negative", "negatives"))
    if not good and not bad:
        raise reader.fail(
            "wrong_task", "texts that are like the query are expected under pos, those that are not under neg"
        )
    scores = [_numbers(reader, low, name) for name in ("pos_scores", "neg_scores")]
    for name, found, texts in (("pos_scores", scores[0], good), ("neg_scores", scores[1], bad)):
        if found and len(found) != len(texts):
            raise reader.fail("scores_mismatch", f"{len(found)} scores for {len(texts)} texts", name)
    return Similar(query, good, bad, reader.where, None, scores[0], scores[1], weight)


def _similar_chat(reader: Reader, low: Columns, value: Mapping[str, Json], weight: float) -> Similar:
    """ms-swift's form: the user's text, the assistant's as the one like it, `rejected_response` as those unlike it."""
    messages = [message for message in conversation(reader, value) if message.role != "system"]
    if not messages:
        raise reader.fail("empty_messages", "the chat has no messages")
    if any(message.role == "user" for message in messages[1:]):
        raise reader.fail("wrong_task", "a conversation of several turns is not a text and others like it")
    bad = _several(reader, low, ("rejected_response",))
    score = low.get("label")
    good = tuple(message.content for message in messages[1:])
    return Similar(
        messages[0].content,
        good,
        bad,
        reader.where,
        number_of(reader, score[1], score[0]) if score and not bad else None,
        weight=weight,
    )


def _several(reader: Reader, low: Columns, names: tuple[str, ...]) -> tuple[str, ...]:
    found = first(low, names)
    if found is None:
        return ()
    key, item = found
    if isinstance(item, str) and not item.lstrip().startswith("["):
        return (item,)
    texts = tuple(reader.text(text, f"{key}[{i}]") for i, text in enumerate(reader.items(item, key)))
    for i, text in enumerate(texts):
        if not text.strip():
            raise reader.fail("empty_text", "a text is empty", f"{key}[{i}]")
    return texts


def _numbers(reader: Reader, low: Columns, name: str) -> tuple[float, ...]:
    if name not in low:
        return ()
    key, item = low[name]
    return tuple(number_of(reader, score, f"{key}[{i}]") for i, score in enumerate(reader.items(item, key)))
