"""One message of a chat: its role, its content in any of the forms in use, its tool calls, its loss weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import orjson

from luthier.base.config import nearest
from luthier.base.records import BadRow, Fault, Json, Message, Role, Where
from luthier.data.row import json_type

CALL = "call"
ROLES: dict[str, Role | str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": CALL,
    "tool_call": CALL,
}
"""Names of roles in use; a `call` is an assistant turn whose text is the JSON of its tool calls."""

_KEYS = frozenset(
    """role from content value name loss loss_scale loss_weight weight reasoning reasoning_content thinking tool_calls
    function_call tool_call_id refusal""".split()  # noqa: SIM905  (a list is ten lines)
)
_TEXT_PARTS = {"text", "input_text", "output_text", "refusal"}
_REASONING_PARTS = {"reasoning", "thinking"}


class Reader:
    """Faults of one row: raised, or repaired and noted where a repair is safe and wanted.

    Args:
        repairs: receives a fault for every repair; None repairs nothing.
    """

    def __init__(self, where: Where, repairs: list[Fault] | None = None):
        self.where, self.repairs = where, repairs

    def fail(self, code: str, message: str, path: str = "") -> BadRow:
        """A fault to raise."""
        return BadRow(Fault(code, self.where, message, path))

    def repair(self, code: str, message: str, path: str = "") -> None:
        """Note a repair that the caller makes; raises the fault when repairs are not wanted."""
        if self.repairs is None:
            raise self.fail(code, message, path)
        self.repairs.append(Fault(code, self.where, message, path))

    def text(self, value: Json, path: str) -> str:
        """Text, or a number as its text."""
        if isinstance(value, str):
            return value
        if value is None:
            raise self.fail("missing_key", "text is expected, this is null", path)
        if isinstance(value, (list, dict, bool)):
            raise self.fail("not_text", f"text is expected, this is {json_type(value)}", path)
        self.repair("not_text", "text is expected, this is a number", path)
        return orjson.dumps(value).decode()

    def items(self, value: Json, path: str) -> list[Json]:
        """A list, or the JSON text of one (as in CSV and Parquet columns); null is empty."""
        if not isinstance(value, str) or value.lstrip().startswith(("[", "{", "null")):
            value = self.decoded(value, path)
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            raise self.fail("not_a_list", f"a list is expected, this is {json_type(value)}", path)
        return value

    def decoded(self, value: Json, path: str) -> Json:
        """JSON given as text becomes the value; anything else stays."""
        if not isinstance(value, str) or not value.strip():
            return value
        try:
            return cast(Json, orjson.loads(value))
        except orjson.JSONDecodeError as error:
            message = f"this text is not JSON: {error.msg.split(': line ')[0]}"
            raise self.fail("malformed_json", message, path) from error

    def mapping(self, value: Json, path: str) -> dict[str, Json]:
        """An object without the keys that are null, which tables write for what is absent."""
        if not isinstance(value, dict):
            raise self.fail("not_an_object", f"an object is expected, this is {json_type(value)}", path)
        return {key: item for key, item in value.items() if item is not None}

    def number(self, value: Json, path: str) -> float:
        """A loss weight: a number from 0 on, a boolean, or the text of a number."""
        try:
            number = float(value) if isinstance(value, (bool, int, float, str)) else math.nan
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise self.fail("bad_weight", "a weight must be a number from 0 on", path)
        return number


def read_messages(reader: Reader, values: Sequence[Json], path: str) -> list[Message]:
    """Messages with `role`/`content` or `from`/`value`.  A call joins the assistant turn right before it.

    Raises:
        BadRow: `unknown_role`, `missing_key`, `extra_key`, `bad_weight`, `weight_on_user`, `bad_tool_arguments`,
            `bad_tool_call`, `needs_media`, `not_text`, `not_an_object`.
    """
    messages: list[Message] = []
    for number, value in enumerate(values):
        message = _read_message(reader, reader.mapping(value, f"{path}[{number}]"), f"{path}[{number}]")
        last = messages[-1] if messages else None
        if last and _continues(last, message):
            messages[-1] = replace(last, tool_calls=last.tool_calls + message.tool_calls)
        else:
            messages.append(message)
    return messages


def _continues(last: Message, message: Message) -> bool:
    """Whether a message is the tool calls of the turn before it, written as a turn of their own."""
    bare = bool(message.tool_calls) and not message.content and not message.reasoning
    return bare and last.role == "assistant" and last.weight == message.weight


def _read_message(reader: Reader, value: Mapping[str, Json], path: str) -> Message:
    role = _role(reader, value, path)
    for key in value:
        if key not in _KEYS:
            reader.repair("extra_key", f"the key {key!r} means nothing in a message", f"{path}.{key}")
    content_key = "value" if "value" in value and "content" not in value else "content"
    content, reasoning, calls = _content(reader, role, value.get(content_key), f"{path}.{content_key}")
    for key in ("reasoning", "reasoning_content", "thinking"):
        if key in value:
            reasoning = reader.text(value[key], f"{path}.{key}")
    for number, call in enumerate(reader.items(value.get("tool_calls"), f"{path}.tool_calls")):
        calls.append(_tool_call(reader, call, f"{path}.tool_calls[{number}]"))
    if "function_call" in value:
        calls.append(_tool_call(reader, value["function_call"], f"{path}.function_call"))
    if content_key not in value and not calls and "refusal" not in value:
        raise reader.fail("missing_key", "a message needs 'content'", path)
    if calls and role not in ("assistant", CALL):
        raise reader.fail("bad_tool_call", f"only the assistant calls tools, this is a turn of {role!r}", path)
    if "refusal" in value and not content:
        content = reader.text(value["refusal"], f"{path}.refusal")
    return Message(
        role="assistant" if role == CALL else cast(Role, role),
        content=content,
        weight=_weight(reader, role, value, path),
        reasoning=reasoning or None,
        tool_calls=tuple(calls),
        tool_call_id=reader.text(value["tool_call_id"], f"{path}.tool_call_id") if "tool_call_id" in value else None,
        name=reader.text(value["name"], f"{path}.name") if "name" in value else None,
    )


def _role(reader: Reader, value: Mapping[str, Json], path: str) -> str:
    key = "from" if "from" in value and "role" not in value else "role"
    if key not in value:
        raise reader.fail("missing_key", "a message needs 'role'", path)
    found = reader.text(value[key], f"{path}.{key}")
    role = ROLES.get(found.strip().lower())
    if role is None:
        near = nearest(found.lower(), ROLES)
        hint = f" (did you mean {near!r}?)" if near else f"; known: {', '.join(ROLES)}"
        raise reader.fail("unknown_role", f"unknown role {found!r}{hint}", f"{path}.{key}")
    return role


def _content(reader: Reader, role: str, value: Json, path: str) -> tuple[str, str, list[Mapping[str, Json]]]:
    """Content as (text, reasoning, tool calls)."""
    if value is None:
        return "", "", []
    if role == CALL:
        return "", "", _calls(reader, value, path)
    if role == "tool" and isinstance(value, (dict, list)) and not _is_parts(value):
        return orjson.dumps(value).decode(), "", []
    if not isinstance(value, list):
        return reader.text(value, path), "", []
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Mapping[str, Json]] = []
    for number, item in enumerate(value):
        place = f"{path}[{number}]"
        if isinstance(item, str):
            texts.append(item)
            continue
        part = reader.mapping(item, place)
        kind = part.get("type", "text")
        inside = next((part[key] for key in ("text", "value", "refusal", "thinking", "reasoning") if key in part), None)
        if kind in _TEXT_PARTS:
            texts.append(reader.text(inside, place))
        elif kind in _REASONING_PARTS:
            reasoning.append(reader.text(inside, place))
        elif kind == "tool_call":
            calls += _calls(reader, inside, place)
        else:
            message = f"a content part of type {kind!r} needs a model that reads more than text"
            raise reader.fail("needs_media", message, f"{place}.type")
    return "".join(texts), "".join(reasoning), calls


def _is_parts(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and "type" in item for item in value)


def _calls(reader: Reader, value: Json, path: str) -> list[Mapping[str, Json]]:
    """One tool call or a list of them, as JSON or its text."""
    try:
        found = reader.decoded(value, path)
    except BadRow as error:
        raise BadRow(replace(error.fault, code="bad_tool_arguments")) from error
    items = found if isinstance(found, list) else [found]
    return [_tool_call(reader, item, path) for item in items]


def _tool_call(reader: Reader, value: Json, path: str) -> Mapping[str, Json]:
    """A tool call in OpenAI's shape, with its arguments as an object, which is what chat templates expect."""
    call = reader.mapping(value, path)
    if "function" in call:
        path = f"{path}.function"
    function = reader.mapping(call.get("function", value), path)
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise reader.fail("bad_tool_call", "a tool call needs the name of a function", f"{path}.name")
    try:
        arguments = reader.decoded(function.get("arguments", {}), f"{path}.arguments")
    except BadRow as error:
        raise BadRow(replace(error.fault, code="bad_tool_arguments")) from error
    arguments = {} if arguments == "" else arguments
    if not isinstance(arguments, dict):
        message = f"the arguments of a tool call must be a JSON object, this is {json_type(arguments)}"
        raise reader.fail("bad_tool_arguments", message, f"{path}.arguments")
    made: dict[str, Json] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _weight(reader: Reader, role: str, value: Mapping[str, Json], path: str) -> float | None:
    """The loss weight of a turn: OpenAI's `weight` is 0 or 1 and only for the assistant, the others are free."""
    if "weight" in value:
        weight = reader.number(value["weight"], f"{path}.weight")
        if weight not in (0, 1):
            raise reader.fail("bad_weight", "weight must be 0 or 1; loss_scale takes other numbers", f"{path}.weight")
        if role not in ("assistant", CALL):
            reader.repair("weight_on_user", f"weight is for assistant turns, this is {role!r}", f"{path}.weight")
            return None
        return weight
    weights = [
        reader.number(value[key], f"{path}.{key}") for key in ("loss", "loss_scale", "loss_weight") if key in value
    ]
    return math.prod(weights) if weights else None
