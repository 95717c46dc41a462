"""Rows with a class, several classes or a number, and rows with a tag for each token."""

from __future__ import annotations

import re
from collections.abc import Mapping

from luthier.base.records import Json, Label, Labelled, Tagged
from luthier.data import spans
from luthier.data.columns import (
    CHATS,
    FIRST,
    LABELS,
    MORE_LABELS,
    SCORES,
    SECOND,
    TAGS,
    TEXTS,
    Columns,
    first,
    number_of,
    text_of,
)
from luthier.data.formats import row_weight
from luthier.data.messages import Reader
from luthier.data.prompts import conversation

_TAGGED_TEXTS = ("text", "input", "sentence")
_TAG = re.compile(r"[BIOMESLU](-\S+)?")


def classification(reader: Reader, low: Columns, value: Mapping[str, Json]) -> Labelled:
    """A text, a pair of texts or a chat with its class, its classes or a number.

    Raises:
        BadRow: `wrong_task`, `missing_key`, `empty_text`, `empty_messages`, `bad_label`, `not_a_number`.
    """
    found = first(low, (*LABELS, *MORE_LABELS, "reward", *SCORES))
    if found is None:
        raise reader.fail("wrong_task", "a label is expected under one of " + ", ".join((*LABELS, *MORE_LABELS)))
    key, item = found
    label = number_of(reader, item, key) if key.lower() == "reward" else _label(reader, item, key)
    weight = row_weight(reader, value)
    if any(name in low for name in CHATS):
        messages = conversation(reader, value)
        if not messages:
            raise reader.fail("empty_messages", "the chat has no messages")
        text = "\n".join(message.content for message in messages)
        return Labelled(text, label, reader.where, messages=messages, weight=weight)
    if first(low, FIRST) and first(low, SECOND):
        one, other = text_of(reader, low, FIRST, "the first text"), text_of(reader, low, SECOND, "the second text")
        return Labelled(one, label, reader.where, pair=other, weight=weight)
    return Labelled(text_of(reader, low, (*TEXTS, "prompt"), "a text"), label, reader.where, weight=weight)


def _label(reader: Reader, value: Json, path: str) -> Label:
    if isinstance(value, list):
        if any(isinstance(item, bool) or not isinstance(item, str | int) for item in value):
            raise reader.fail("bad_label", "several labels are texts or whole numbers", path)
        return tuple(item for item in value if isinstance(item, str | int))
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str | int | float) and value != "":
        return value
    raise reader.fail("bad_label", "a label is a text, a number or a list of them", path)


def tagging(reader: Reader, low: Columns, value: Mapping[str, Json]) -> Tagged:
    """Tokens, characters or places in a text, with their tags.

    Raises:
        BadRow: `wrong_task`, `empty_text`, `tags_mismatch`, `bad_span`.
    """
    told = spans_in(low)
    if told is not None:
        return _tagged_text(reader, low, told, row_weight(reader, value))
    found = first(low, TAGS)
    if found is None:
        raise reader.fail("wrong_task", "tags are expected under one of " + ", ".join(TAGS))
    key, item = found
    tags = tuple(
        reader.text(tag, f"{key}[{i}]") if isinstance(tag, str) else str(tag)
        for i, tag in enumerate(reader.items(item, key))
    )
    if "tokens" in low:
        name, values = low["tokens"]
        tokens = tuple(reader.text(token, f"{name}[{i}]") for i, token in enumerate(reader.items(values, name)))
    else:
        text = text_of(reader, low, _TAGGED_TEXTS, "a text")
        tokens = tuple(text) if len(tags) == len(text) else tuple(text.split())
    if not tokens:
        raise reader.fail("empty_text", "there are no tokens", "tokens")
    if len(tokens) != len(tags):
        raise reader.fail("tags_mismatch", f"{len(tags)} tags for {len(tokens)} tokens", key)
    return Tagged(tokens, tags, reader.where, row_weight(reader, value))


def _tagged_text(reader: Reader, low: Columns, found: list[Json], weight: float) -> Tagged:
    text = text_of(reader, low, _TAGGED_TEXTS, "a text")
    read: list[spans.Span] = []
    for number, item in enumerate(found):
        span = spans.span_of(item)
        if span is None:
            raise reader.fail("bad_span", "a span is [start, end, label], in characters", f"spans[{number}]")
        read.append(span)
    fault = spans.fault_of(read, len(text))
    if fault is not None:
        raise reader.fail("bad_span", fault[0], f"spans[{fault[1]}]")
    words = spans.words_in(text, read)
    tokens = tuple(text[start:end] for start, end in words)
    return Tagged(tokens, tuple(spans.bio(words, read)), reader.where, weight, text, tuple(words))


def spans_in(low: Columns) -> list[Json] | None:
    """Tags told as places in a text, unread; None where there are none."""
    if "tokens" in low or not low.keys() & set(_TAGGED_TEXTS):
        return None
    for name in (*spans.NAMED, *LABELS):
        found = low[name][1] if name in low else None
        if isinstance(found, list) and (name in spans.NAMED or (found and all(map(spans.span_of, found)))):
            return found
    return None


def are_tags(labels: list[Json], text: Json) -> bool:
    """Whether labels are one tag for each character or each word of a text."""
    if not (labels and all(isinstance(label, str) and _TAG.fullmatch(label) for label in labels)):
        return False
    return isinstance(text, str) and len(labels) in (len(text), len(text.split()))
