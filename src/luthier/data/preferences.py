"""Rows that say which answer is better: the two sides of a preference, and single answers judged good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from luthier.base.records import Json, Judged, Message, Pair
from luthier.data.columns import Columns, first, number_of
from luthier.data.formats import read_conversation, row_weight, tools_of
from luthier.data.messages import Reader, read_messages
from luthier.data.prompts import conversation, prompt_of

SIDES = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
    ("chosen_response", "rejected_response"),
)
"""Columns of the better and the worse side."""


def preference(reader: Reader, low: Columns, value: Mapping[str, Json]) -> Pair:
    """Two sides as texts or as messages, behind a prompt or a conversation.

    Raises:
        BadRow: `wrong_task`, `missing_key`, `empty_side`, `identical_sides`, `prompt_mismatch`, `tie`.
    """
    names = next((pair for pair in SIDES if pair[0] in low and pair[1] in low), None)
    if names is None and "rejected_response" not in low:
        present = next((name for pair in SIDES for name in pair if name in low), None)
        side = "the other side of the preference is missing" if present else "two sides of a preference are expected"
        raise reader.fail("missing_key" if present else "wrong_task", side, present or "")
    if names is None:
        messages = conversation(reader, value)
        prompt, chosen = _cut(reader, messages)
        key, other = low["rejected_response"]
        rejected = _side(reader, other, key)
    else:
        prompt = prompt_of(reader, low, value)
        chosen, rejected = (_side(reader, low[name][1], low[name][0]) for name in names)
        prompt, chosen, rejected = _without_shared(reader, prompt, chosen, rejected, low[names[1]][0])
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if not any(message.content.strip() or message.tool_calls for message in messages):
            raise reader.fail("empty_side", f"the {side} side says nothing", side)
    if [_said(message) for message in chosen] == [_said(message) for message in rejected]:
        raise reader.fail("identical_sides", "both sides say the same")
    if not any(message.role != "system" for message in prompt):
        raise reader.fail("missing_key", "a preference needs a prompt", "prompt")
    return Pair(
        prompt, chosen, rejected, reader.where, tools_of(reader, value), row_weight(reader, value), _margin(reader, low)
    )


def _said(message: Message) -> tuple[object, ...]:
    return message.role, message.content, message.reasoning, str(message.tool_calls)


def _margin(reader: Reader, low: Columns) -> float | None:
    scores = [low.get(name) for name in ("chosen_score", "rejected_score")]
    scores = scores if all(scores) else [low.get(name) for name in ("score_chosen", "score_rejected")]
    if not all(scores):
        return None
    good, bad = (number_of(reader, item, key) for key, item in (found for found in scores if found))
    if good == bad:
        raise reader.fail("tie", "both sides have the same score", scores[0][0] if scores[0] else "")
    return good - bad


def _cut(reader: Reader, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """A conversation as what comes before its last answer, and the answer."""
    if not messages or messages[-1].role != "assistant":
        raise reader.fail("no_assistant", "the conversation must end with the preferred answer", "messages")
    return messages[:-1], messages[-1:]


def _side(reader: Reader, value: Json, path: str) -> tuple[Message, ...]:
    """One side: a text, a message, or messages."""
    if isinstance(value, str):
        return (Message("assistant", value),)
    if isinstance(value, dict):
        return tuple(read_messages(reader, [value], path))
    return tuple(read_messages(reader, reader.items(value, path), path))


def _without_shared(
    reader: Reader, prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...], path: str
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Sides that repeat the prompt lose it; without a prompt, what both sides begin with becomes it.

    Raises:
        BadRow: `prompt_mismatch` when the sides answer different prompts.
    """
    whole = any(message.role == "user" for message in (chosen[:1] + chosen[1:2]))
    if not whole:
        if any(message.role != "assistant" for message in rejected[:1]):
            raise reader.fail("prompt_mismatch", "one side begins with a prompt and the other does not", path)
        return prompt, chosen, rejected
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if _said(one) != _said(other):
            break
        shared += 1
    if shared == max(len(chosen), len(rejected)):
        raise reader.fail("identical_sides", "both sides say the same")
    head = chosen[:shared]
    if any(message.role == "user" for message in (*chosen[shared:][:1], *rejected[shared:][:1])) or not head:
        raise reader.fail("prompt_mismatch", "the two sides answer different prompts", path)
    return head, chosen[shared:], rejected[shared:]


def judged(reader: Reader, low: Columns, value: Mapping[str, Json]) -> Judged:
    """A conversation whose last answer is called good or bad.

    Raises:
        BadRow: `wrong_task`, `label_not_boolean`, `no_assistant`.
    """
    found = first(low, ("label", "kto_tag"))
    if found is None:
        raise reader.fail("wrong_task", "a label true or false is expected")
    key, label = found
    if isinstance(label, str) and label.lower() in ("true", "false"):
        reader.repair("label_not_boolean", "the label is the text of a boolean", key)
        label = label.lower() == "true"
    if not isinstance(label, bool):
        raise reader.fail("label_not_boolean", "the label must be true or false", key)
    rest = {name: item for name, item in value.items() if name != key}
    chat = read_conversation(reader, rest)
    if not chat.messages or chat.messages[-1].role != "assistant":
        raise reader.fail("no_assistant", "the conversation must end with the judged answer", "messages")
    messages = chat.messages
    if "prompt" in low:  # its answers are not trained, but here only the last one is judged anyway
        messages = tuple(replace(message, weight=None) for message in messages)
    return Judged(messages, label, reader.where, chat.tools, chat.weight)
