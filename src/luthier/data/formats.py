"""Recognise what shape a row has, without configuration, and read it as a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import cast

import orjson

from luthier.base.records import Chat, Fault, Json, Message, Record, Text, Where
from luthier.data.messages import Reader, read_messages

_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_EXTRAS = ("system", "tools", "functions", "history", "weight")
_QUESTIONS = ("query", "question", "ask", "instruction")
_ANSWERS = ("response", "answer", "output")

_NOT_YET = "which is not there yet"
_PREFERENCE = f"preference training (dpo and its like), {_NOT_YET}"
_OTHER_TASKS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"rejected"}), _PREFERENCE),
    (frozenset({"rejected_response"}), _PREFERENCE),
    (frozenset({"chosen_messages"}), _PREFERENCE),
    (frozenset({"preferred_output"}), _PREFERENCE),
    (frozenset({"preferred_completion"}), _PREFERENCE),
    (frozenset({"answer1", "answer2"}), _PREFERENCE),
    (frozenset({"messages", "label"}), f"classification, or preference training (kto), {_NOT_YET}"),
    (frozenset({"kto_tag"}), f"preference training (kto), {_NOT_YET}"),
    (frozenset({"query", "pos"}), "embedding training"),
    (frozenset({"query", "neg"}), "embedding training"),
    (frozenset({"sentence1", "sentence2"}), "sentence similarity"),
    (frozenset({"tokens", "tags"}), "tagging"),
    (frozenset({"tokens", "labels"}), "tagging"),
    (frozenset({"tokens", "ner_tags"}), "tagging"),
    (frozenset({"text", "label"}), "classification"),
    (frozenset({"text", "labels"}), "classification"),
    (frozenset({"input", "label"}), "classification"),
    (frozenset({"input", "reward"}), "reward models or PPO"),
    (frozenset({"question", "a", "b", "answer"}), "multiple-choice evaluation"),
    (frozenset({"question", "choice0", "answer"}), "multiple-choice evaluation"),
    (frozenset({"question", "choices", "answer"}), "multiple-choice evaluation"),
)
"""Columns, in lower case, that give away the task a row is for, when it is not language modelling."""


def shape_of(value: Mapping[str, Json]) -> str | None:
    """The shape of a row: messages, turns, sharegpt, alpaca, query-response, prompt-completion or text.

    Null values count as absent.  None when no shape is recognised.
    """
    keys = {key for key, item in value.items() if item is not None}
    for name in ("messages", "conversations", "conversation"):
        if name in keys:
            return _chat_shape(value[name])
    if "instances" in keys and "instruction" in keys:
        return "instances"
    if keys & {"instruction", "text"} and "output" in keys:
        return "alpaca"
    if keys.intersection(_QUESTIONS) and keys.intersection(_ANSWERS):
        return "query-response"
    if {"prompt", "completion"} <= keys or {"prompt", "response"} <= keys:
        return "prompt-completion"
    if keys & {"text", "content"}:
        return "text"
    return "alpaca" if {"input", "output"} <= keys else None


def _chat_shape(value: Json) -> str:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict):
        if "message" in first and "role" not in first:
            return "turns"
        if "role" not in first and first.keys() & {"human", "assistant"}:
            return "pairs"
        if "from" in first:
            return "sharegpt"
    return "messages"


def other_task(value: Mapping[str, Json]) -> str | None:
    """The task a row is evidently meant for, when that is not language modelling."""
    return _task_of(tuple(key for key, item in value.items() if item is not None))


@lru_cache(maxsize=4096)
def _task_of(columns: tuple[str, ...]) -> str | None:
    keys = {column.lower() for column in columns}
    return next((task for marks, task in _OTHER_TASKS if marks <= keys), None)


def extra_columns(value: Mapping[str, Json]) -> tuple[str, ...]:
    """Columns of a row that reading it ignores."""
    shape = shape_of(value)
    used = _SHAPES[shape][1] if shape else ()
    if shape == "alpaca" and "instruction" not in value:
        used = ("text", *used)
    return tuple(key for key, item in value.items() if item is not None and key not in used)


def read_record(value: Mapping[str, Json], where: Where, repairs: list[Fault] | None = None) -> Record:
    """Read a row of any known shape.

    Args:
        value: the row; columns no shape knows are ignored (see `extra_columns`).
        repairs: what was repaired is added here; None repairs nothing and raises instead.

    Raises:
        BadRow: with the code and the path of the first fault.
    """
    reader = Reader(where, repairs)
    value = {key: item for key, item in value.items() if item is not None}
    task = other_task(value)
    if task:
        message = f"this row is for {task}; to train on its text alone, rename the other columns with --columns"
        raise reader.fail("wrong_task", message)
    for key in _MEDIA:
        if value.get(key):
            raise reader.fail("needs_media", f"rows with {key} need a model that reads more than text", key)
    shape = shape_of(value)
    if shape is None:
        raise reader.fail("unknown_shape", _unknown(value))
    return _SHAPES[shape][0](reader, value)


def read_conversation(reader: Reader, value: Mapping[str, Json]) -> Chat:
    """The conversation in a row, whatever else the row says; in no particular order of turns.

    Raises:
        BadRow: `unknown_shape` when there is none.
    """
    shape = shape_of(value)
    found = _SHAPES[shape][0](reader, value) if shape else None
    if not isinstance(found, Chat):
        raise reader.fail("unknown_shape", _unknown(value))
    return found


def _unknown(value: Mapping[str, Json]) -> str:
    if "prompt" in value or "query" in value or "question" in value or "instruction" in value:
        return f"a question without an answer: the columns are {', '.join(value)}"
    columns = ", ".join(list(value)[:12]) or "none"
    known = "messages, conversations, instruction + output, query + response, prompt + completion, text"
    example = orjson.dumps({next(iter(value), "theirs"): "text"}).decode()
    return f"no known shape: the columns are {columns}; known are {known}; --columns renames, as '{example}'"


def _messages(reader: Reader, value: Mapping[str, Json]) -> Record:
    key = next(key for key in ("messages", "conversations", "conversation") if key in value)
    return _chat(reader, value, read_messages(reader, reader.items(value[key], key), key))


def _turns(reader: Reader, value: Mapping[str, Json]) -> Record:
    """Messages without speakers: two people take turns, the assistant is the second."""
    messages: list[Message] = []
    for number, item in enumerate(reader.items(value["messages"], "messages")):
        path = f"messages[{number}].message"
        text = reader.text(reader.mapping(item, f"messages[{number}]").get("message"), path)
        messages.append(Message("assistant" if number % 2 else "user", text))
    return _chat(reader, value, messages)


def _pairs(reader: Reader, value: Mapping[str, Json]) -> Record:
    """ShareGPT as ms-swift writes it: one object with `human` and `assistant` a round."""
    key = "conversation" if "conversation" in value else "conversations"
    messages: list[Message] = []
    for number, item in enumerate(reader.items(value[key], key)):
        path = f"{key}[{number}]"
        turn = reader.mapping(item, path)
        for name in turn.keys() - {"human", "assistant"}:
            reader.repair("extra_key", f"the key {name!r} means nothing here", f"{path}.{name}")
        messages.append(Message("user", reader.text(turn.get("human"), f"{path}.human")))
        messages.append(Message("assistant", reader.text(turn.get("assistant"), f"{path}.assistant")))
    return _chat(reader, value, messages)


def _alpaca(reader: Reader, value: Mapping[str, Json]) -> Record:
    """Instruction (or `text`, where there is none) and input make the question, one below the other."""
    keys = ("instruction" if "instruction" in value else "text", "input")
    parts = [reader.text(value[key], key) for key in keys if key in value]
    question = "\n".join(part for part in parts if part)
    return _round(reader, value, question, reader.text(value["output"], "output"))


def _instances(reader: Reader, value: Mapping[str, Json]) -> Record:
    """Self-instruct: an instruction with a list of input and output, of which a row has one."""
    items = reader.items(value["instances"], "instances")
    if len(items) != 1:
        raise reader.fail("many_instances", f"one instance a row is expected, here are {len(items)}", "instances")
    return _alpaca(reader, {**value, **reader.mapping(items[0], "instances[0]")})


def _query_response(reader: Reader, value: Mapping[str, Json]) -> Record:
    question = next(key for key in _QUESTIONS if key in value)
    answer = next(key for key in _ANSWERS if key in value)
    text = reader.text(value[question], question)
    if question == "instruction" and value.get("context"):  # Dolly's name for Alpaca's input
        text = f"{text}\n{reader.text(value['context'], 'context')}"
    return _round(reader, value, text, reader.text(value[answer], answer))


def _prompt_completion(reader: Reader, value: Mapping[str, Json]) -> Record:
    """Strings make one round; lists of messages are joined, and only the completion's assistant turns are trained."""
    answer = "completion" if "completion" in value else "response"
    if not isinstance(value["prompt"], list):
        return _round(reader, value, reader.text(value["prompt"], "prompt"), reader.text(value[answer], answer))
    prompt = read_messages(reader, reader.items(value["prompt"], "prompt"), "prompt")
    prompt = [replace(message, weight=0.0) if message.role == "assistant" else message for message in prompt]
    completion = read_messages(reader, reader.items(value[answer], answer), answer)
    return _chat(reader, value, [*prompt, *completion])


def _text(reader: Reader, value: Mapping[str, Json]) -> Record:
    key = "text" if "text" in value else "content"
    text = reader.text(value[key], key)
    if not text.strip():
        raise reader.fail("empty_text", "the text is empty", key)
    return Text(text, reader.where, row_weight(reader, value))


def _round(reader: Reader, value: Mapping[str, Json], question: str, answer: str) -> Record:
    """The rounds of `history`, then one question and its answer."""
    messages: list[Message] = []
    for number, item in enumerate(reader.items(value.get("history"), "history")):
        path = f"history[{number}]"
        pair = item if isinstance(item, list) else []
        if len(pair) != 2:
            raise reader.fail("bad_history", "history is a list of [question, answer]", path)
        messages.append(Message("user", reader.text(pair[0], f"{path}[0]")))
        messages.append(Message("assistant", reader.text(pair[1], f"{path}[1]")))
    messages += [Message("user", question), Message("assistant", answer)]
    return _chat(reader, value, messages)


def _chat(reader: Reader, value: Mapping[str, Json], messages: list[Message]) -> Chat:
    system = reader.text(value.get("system", ""), "system")
    if system and not (messages and messages[0].role == "system"):
        messages = [Message("system", system), *messages]
    return Chat(tuple(messages), reader.where, tools_of(reader, value), row_weight(reader, value))


def tools_of(reader: Reader, value: Mapping[str, Json]) -> tuple[Mapping[str, Json], ...]:
    """Tools as a list or its JSON text, each in OpenAI's shape or only its inner part.  Raises BadRow."""
    key = "tools" if "tools" in value else "functions"
    found = reader.decoded(value.get(key), key)
    tools: list[Mapping[str, Json]] = []
    for number, item in enumerate(reader.items([found] if isinstance(found, dict) else found, key)):
        path = f"{key}[{number}]"
        tool = reader.mapping(reader.decoded(item, path), path)
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise reader.fail("bad_tool", "a tool needs the name of a function", path)
        tools.append(tool if "function" in tool else {"type": "function", "function": cast(Json, function)})
    return tuple(tools)


def row_weight(reader: Reader, value: Mapping[str, Json]) -> float:
    """The loss weight of a whole row.  Raises BadRow."""
    return reader.number(value["weight"], "weight") if "weight" in value else 1.0


_SHAPES: dict[str, tuple[Callable[[Reader, Mapping[str, Json]], Record], tuple[str, ...]]] = {
    "messages": (_messages, ("messages", "conversations", "conversation", *_EXTRAS, *_MEDIA)),
    "sharegpt": (_messages, ("messages", "conversations", "conversation", *_EXTRAS, *_MEDIA)),
    "pairs": (_pairs, ("conversations", "conversation", *_EXTRAS)),
    "turns": (_turns, ("messages", *_EXTRAS)),
    "alpaca": (_alpaca, ("instruction", "input", "output", *_EXTRAS)),
    "instances": (_instances, ("instruction", "instances", *_EXTRAS)),
    "query-response": (_query_response, (*_QUESTIONS, *_ANSWERS, "context", *_EXTRAS)),
    "prompt-completion": (_prompt_completion, ("prompt", "completion", "response", *_EXTRAS)),
    "text": (_text, ("text", "content", "weight")),
}
"""How each shape is read, and the columns it uses."""

PLAIN_SHAPES: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "text", "input", "output"),
    "query-response": (*_QUESTIONS, "context", *_ANSWERS),
    "prompt-completion": ("prompt", "response", "completion"),
    "text": ("content", "text"),
}
"""Shapes that may consist of nothing but text, with their columns; the last one that is there must not be empty."""
