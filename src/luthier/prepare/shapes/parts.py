"""What the rows of several shapes are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from luthier.base.records import Chat, Json, Judged, Labelled, Message, Pair, Prompt, Record, Similar, Tagged, Text

Row = dict[str, Json]
Losses = list[str]
"""What a row could not hold, by name; filled in while it is written."""


class CannotHold(Exception):
    """The shape is for another kind of record altogether."""


def chat_of(record: Record, losses: Losses) -> Chat:
    """The conversation in a record, whatever else it says."""
    match record:
        case Chat():
            return record
        case Judged():
            losses.append("label")
            return Chat(record.messages, record.where, record.tools, record.weight)
        case Labelled() if record.messages:
            losses.append("label")
            return Chat(record.messages, record.where, weight=record.weight)
        case Pair():
            losses.append("rejected")
            return Chat((*record.prompt, *record.chosen), record.where, record.tools, record.weight)
        case Prompt() if isinstance(record.answer, str):
            messages = (*record.messages, Message("assistant", record.answer))
            return Chat(messages, record.where, record.tools, record.weight)
        case _:
            raise CannotHold(f"{name_of(record)} is no conversation")


def name_of(record: Record) -> str:
    names = {
        Chat: "a chat",
        Text: "plain text",
        Pair: "a preference",
        Judged: "a judged chat",
        Labelled: "a labelled text",
        Tagged: "a tagged sentence",
        Similar: "a text with similar ones",
        Prompt: "a prompt",
    }
    return names[type(record)]


def message_row(message: Message) -> Row:
    """A message as OpenAI writes it; the loss weight as `loss_scale`, which takes any number."""
    row: Row = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = cast(Json, [dict(call) for call in message.tool_calls])
    for name, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if value is not None:
            row[name] = value
    if message.weight is not None:
        row["loss_scale"] = message.weight
    return row


def message_rows(messages: Sequence[Message]) -> Json:
    return cast(Json, [message_row(message) for message in messages])


def tools_row(tools: Sequence[Mapping[str, Json]]) -> Row:
    return {"tools": cast(Json, [dict(tool) for tool in tools])} if tools else {}


def note_extras(message: Message, losses: Losses) -> bool:
    """Note what a message says besides its text; always true."""
    for name, value in (
        ("weight of a turn", message.weight),
        ("reasoning", message.reasoning),
        ("tool calls", message.tool_calls or None),
        ("tool call id", message.tool_call_id),
        ("name of a speaker", message.name),
    ):
        if value is not None:
            losses.append(name)
    return True


def label_of(record: Labelled) -> Json:
    return list(record.label) if isinstance(record.label, tuple) else record.label
