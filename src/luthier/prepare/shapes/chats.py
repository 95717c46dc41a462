"""Conversations as rows, whole and round by round."""

from __future__ import annotations

import orjson

from luthier.base.records import Chat, Json, Judged, Labelled, Pair, Prompt, Record
from luthier.prepare.shapes.parts import (
    CannotHold,
    Losses,
    Row,
    chat_of,
    label_of,
    message_rows,
    name_of,
    note_extras,
    tools_row,
)


def messages(record: Record, losses: Losses) -> Row:
    if isinstance(record, Labelled) and record.messages:
        return {"messages": message_rows(record.messages), "label": label_of(record)}
    if isinstance(record, Judged):
        return {"messages": message_rows(record.messages), **tools_row(record.tools), "label": record.good}
    if isinstance(record, Pair):
        if len(record.chosen) == len(record.rejected) == 1 and note_extras(record.rejected[0], losses):
            rejected = record.rejected[0].content
            if record.margin is not None:
                losses.append("margin")
            messages = message_rows((*record.prompt, *record.chosen))
            return {"messages": messages, **tools_row(record.tools), "rejected_response": rejected}
        raise CannotHold("the sides of the preference are more than one text")
    if isinstance(record, Prompt) and not isinstance(record.answer, str):
        raise CannotHold("a prompt has no answer")
    chat = chat_of(record, losses)
    return {"messages": message_rows(chat.messages), **tools_row(chat.tools)}


def kto(record: Record, losses: Losses) -> Row:
    if not isinstance(record, Judged):
        raise CannotHold(f"{name_of(record)} was not judged good or bad")
    return messages(record, losses)


def sharegpt(record: Record, losses: Losses) -> Row:
    """`conversations` with from and value; tool calls and their results as turns of their own."""
    label: Row = {}
    if isinstance(record, Judged):
        label, record = {"label": record.good}, Chat(record.messages, record.where, record.tools, record.weight)
    elif isinstance(record, Labelled) and record.messages:
        label, record = {"label": label_of(record)}, Chat(record.messages, record.where, weight=record.weight)
    chat = chat_of(record, losses)
    speakers = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    turns: list[Json] = []
    row: Row = {}
    for number, message in enumerate(chat.messages):
        if message.reasoning is not None:
            losses.append("reasoning")
        if message.tool_call_id is not None or any("id" in call for call in message.tool_calls):
            losses.append("tool call id")
        if message.name is not None:
            losses.append("name of a speaker")
        weight: Row = {} if message.weight is None else {"loss_scale": message.weight}
        if message.role == "system" and number == 0:
            row["system"] = message.content
            if message.weight is not None:
                losses.append("weight of a turn")
            continue
        if message.content or not message.tool_calls:
            turns.append({"from": speakers[message.role], "value": message.content, **weight})
        if message.tool_calls:
            calls = [call["function"] for call in message.tool_calls]
            value = orjson.dumps(calls[0] if len(calls) == 1 else calls).decode()
            turns.append({"from": "function_call", "value": value, **weight})
    row = {"conversations": turns, **row}
    if chat.tools:
        row["tools"] = orjson.dumps([tool.get("function", tool) for tool in chat.tools]).decode()
    return {**row, **label}


def alpaca(record: Record, losses: Losses) -> Row:
    return _rounds_row(record, losses, "instruction", "output")


def query_response(record: Record, losses: Losses) -> Row:
    return _rounds_row(record, losses, "query", "response")


def _rounds_row(record: Record, losses: Losses, question: str, answer: str) -> Row:
    system, rounds = _rounds(chat_of(record, losses), losses)
    if not rounds:
        raise CannotHold("there is no question with an answer")
    *history, last = rounds
    row: Row = {question: last[0], **({"input": ""} if question == "instruction" else {}), answer: last[1]}
    if system:
        row["system"] = system
    if history:
        row["history"] = [list(pair) for pair in history]
    return row


def _rounds(chat: Chat, losses: Losses) -> tuple[str, list[tuple[str, str]]]:
    """A chat as its system message and its rounds of question and answer.

    Raises:
        CannotHold: the turns do not alternate.
    """
    messages = list(chat.messages)
    system = ""
    if messages and messages[0].role == "system":
        first = messages.pop(0)
        system = first.content
        note_extras(first, losses)
    if len(messages) % 2 or any(
        message.role != ("assistant" if number % 2 else "user") for number, message in enumerate(messages)
    ):
        raise CannotHold("the turns are not questions with one answer each")
    for message in messages:
        note_extras(message, losses)
    if chat.tools:
        losses.append("tools")
    texts = [message.content for message in messages]
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def prompt_completion(record: Record, losses: Losses) -> Row:
    """Texts for one plain round, lists of messages for everything else."""
    if isinstance(record, Judged):
        chat = Chat(record.messages, record.where, record.tools, record.weight)
        return {**_completion(chat), "label": record.good}
    chat = chat_of(record, losses)
    if any(message.weight not in (None, 0.0) for message in chat.messages[:-1] if message.role == "assistant"):
        losses.append("weight of a turn")
    if any(message.role == "assistant" and message.weight is None for message in chat.messages[:-1]):
        losses.append("answers before the last one are trained")
    return _completion(chat)


def _completion(chat: Chat) -> Row:
    prompt, completion = chat.messages[:-1], chat.messages[-1:]
    if not prompt or not completion or completion[0].role != "assistant":
        raise CannotHold("the conversation does not end with an answer to something")
    extra: Losses = []
    for message in chat.messages:
        note_extras(message, extra)
    if not extra and len(prompt) == 1 and prompt[0].role == "user" and not chat.tools:
        return {"prompt": prompt[0].content, "completion": completion[0].content}
    return {"prompt": message_rows(prompt), "completion": message_rows(completion), **tools_row(chat.tools)}


def prompt(record: Record, losses: Losses) -> Row:
    """A prompt with the answer to judge by, for reinforcement learning."""
    if not isinstance(record, Prompt):
        chat = chat_of(record, losses)
        if not chat.messages or chat.messages[-1].role != "assistant":
            raise CannotHold("the conversation does not end with an answer")
        note_extras(chat.messages[-1], losses)
        record = Prompt(chat.messages[:-1], chat.where, chat.tools, chat.messages[-1].content)
    extra: Losses = []
    for message in record.messages:
        note_extras(message, extra)
    one = len(record.messages) == 1 and record.messages[0].role == "user" and not extra
    row: Row = {"prompt": record.messages[0].content if one else message_rows(record.messages)}
    if record.tools:
        row.update(tools_row(record.tools))
    for name, value in (("answer", record.answer), ("action", record.action), ("reward", record.reward)):
        if value is not None:
            row[name] = value
    return row
