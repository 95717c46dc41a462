"""What is said before an answer: prompts alone, and those in front of the two sides of a preference."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.base.records import Json, Message, Prompt
from luthier.data.columns import CHATS, Columns, first, number_of
from luthier.data.formats import read_conversation, row_weight, shape_of, tools_of
from luthier.data.messages import Reader, read_messages

_ANSWERS = ("answer", "solution", "ground_truth", "reference", "response", "completion", "output")
_PROMPTS = ("prompt", "query", "question", "instruction", "input")


def prompt(reader: Reader, low: Columns, value: Mapping[str, Json]) -> Prompt:
    """A prompt alone, with a reference, with an earlier action and its reward, or any chat up to its last answer.

    Raises:
        BadRow: `empty_text`, and as reading a conversation.
    """
    reward = low.get("reward")
    action = low.get("action")
    earned = number_of(reader, reward[1], reward[0]) if reward else None
    done = reader.text(action[1], action[0]) if action else None
    weight, tools = row_weight(reader, value), tools_of(reader, value)

    def made(messages: tuple[Message, ...], answer: Json) -> Prompt:
        if not any(message.role != "system" and message.content.strip() for message in messages):
            raise reader.fail("empty_text", "the prompt is empty", "prompt")
        return Prompt(messages, reader.where, tools, answer, done, earned, weight)

    if any(name in low for name in CHATS):
        messages = conversation(reader, value)
        answer = first(low, _ANSWERS)
        given: Json = answer[1] if answer else None
        if messages and messages[-1].role == "assistant":
            given = messages[-1].content if given is None else given
            messages = messages[:-1]
        return made(messages, given)
    shape = shape_of({key: item for key, item in value.items() if key.lower() not in ("reward", "action", "state")})
    if shape in ("alpaca", "query-response", "prompt-completion"):
        chat = read_conversation(reader, value)
        given = chat.messages[-1].content
        return made(chat.messages[:-1], given)
    messages = prompt_of(reader, low, value)
    answer = first(low, _ANSWERS)
    return made(messages, answer[1] if answer else None)


def prompt_of(reader: Reader, low: Columns, value: Mapping[str, Json]) -> tuple[Message, ...]:
    """What stands before the two sides; nothing when each side brings it itself.

    Raises:
        BadRow: as reading a conversation.
    """
    if any(name in low for name in CHATS):
        return conversation(reader, value)
    if "instruction" in low:
        parts = [reader.text(low[name][1], low[name][0]) for name in ("instruction", "input") if name in low]
        text = "\n".join(part for part in parts if part)
        return _with_system(reader, value, (*_history(reader, value), Message("user", text)))
    found = first(low, _PROMPTS)
    if found is None:
        return ()
    key, item = found
    if isinstance(item, dict):  # OpenAI: {"messages": [...], "tools": [...]}
        return tuple(read_messages(reader, reader.items(item.get("messages"), f"{key}.messages"), f"{key}.messages"))
    if isinstance(item, list):
        return _with_system(reader, value, tuple(read_messages(reader, item, key)))
    return _with_system(reader, value, (*_history(reader, value), Message("user", reader.text(item, key))))


def _history(reader: Reader, value: Mapping[str, Json]) -> tuple[Message, ...]:
    if "history" not in value:
        return ()
    filler: dict[str, Json] = {"query": "q", "response": "a", "history": value["history"]}
    return read_conversation(reader, filler).messages[:-2]


def _with_system(reader: Reader, value: Mapping[str, Json], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system = reader.text(value.get("system", ""), "system")
    return (Message("system", system), *messages) if system and messages[0].role != "system" else messages


def conversation(reader: Reader, value: Mapping[str, Json]) -> tuple[Message, ...]:
    """The messages of a row of any chat shape.

    Raises:
        BadRow: as reading a conversation.
    """
    return read_conversation(reader, value).messages
