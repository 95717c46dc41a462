"""Tool calls in answers, in the way that the model's own template writes them.

The template is asked once how it writes a call.  Answers are read back by that form, and a call that must come is
forced into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.base.records import BadRow, Chat, Json, Message, Where
from luthier.data.render import Renderer
from luthier.generate.request import Form

_NAME, _KEY, _VALUE = "luthier_probe", "luthier_key", "luthier_value"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: str
    """JSON text"""


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a call is written: `start`, a JSON object of name and arguments, `end`."""

    start: str
    name: str
    """key of the function's name"""
    arguments: str
    """key of its arguments"""
    end: str

    @property
    def mark(self) -> str:
        """What shows that a call begins."""
        return self.start.strip()

    def read(self, text: str) -> tuple[str, list[Call]]:
        """What an answer says besides its calls, and the calls; text that is no call stays text."""
        before, calls, at = "", list[Call](), 0
        while True:
            begin = text.find(self.mark, at) if self.mark else at + len(text[at:]) - len(text[at:].lstrip())
            if begin < 0 or (not self.mark and text[begin : begin + 1] != "{"):
                break
            found = self._call(text, begin + len(self.mark))
            if found is None:
                break
            before += text[at:begin]
            call, at = found
            calls.append(call)
        rest = before + text[at:]
        return (rest.strip() if calls else rest), calls

    def _call(self, text: str, at: int) -> tuple[Call, int] | None:
        at += len(text[at:]) - len(text[at:].lstrip())
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get(self.name), str):
            return None
        arguments = value.get(self.arguments, {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        closing = self.end.strip()
        rest = text[end:].lstrip()
        if closing and rest.startswith(closing):
            end = len(text) - len(rest) + len(closing)
        return Call(value[self.name], arguments), end

    def must(self, tools: Sequence[Mapping[str, Json]], name: str | None) -> Form:
        """The form of an answer that calls one of the tools, or the one of this name."""
        options: list[Any] = []
        for tool in tools:
            function: Any = tool["function"]
            if name in (None, function["name"]):
                properties = {
                    self.name: {"const": function["name"]},
                    self.arguments: _no_others(function.get("parameters") or {"type": "object"}),
                }
                required = [self.name, self.arguments]
                options.append(
                    {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
                )
        schema: dict[str, Any] = options[0] if len(options) == 1 else {"anyOf": options}
        schema["x-guidance"] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        edges = [json.dumps(edge, ensure_ascii=False) for edge in (self.start, self.end)]
        parts = [edges[0] if self.start else "", "call", edges[1] if self.end else ""]
        return Form("lark", f"start: {' '.join(part for part in parts if part)}\ncall: %json {json.dumps(schema)}")


def _no_others(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters that are listed are all there are, unless they say otherwise: a call is not to invent some."""
    return {"additionalProperties": False, **parameters} if parameters.get("properties") else parameters


def call_form(renderer: Renderer) -> CallForm | None:
    """How a template writes calls; None when it does not, or not as JSON."""
    call: dict[str, Json] = {"type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}
    tool: dict[str, Json] = {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "A probe.",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
        },
    }
    messages = Message("user", "Hello."), Message("assistant", "", tool_calls=(call,))
    try:
        tokens = renderer.chat(Chat(messages, Where("probe", 1), (tool,)), train_on="last")
    except BadRow:
        return None
    ids = tokens.ids[tokens.weights > 0].tolist()
    text = renderer.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return _form_of(text)


def _form_of(text: str) -> CallForm | None:
    begin = text.find("{")
    try:
        value, end = json.JSONDecoder().raw_decode(text, begin) if begin >= 0 else (None, 0)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    names = [key for key, item in value.items() if item == _NAME]
    arguments = [key for key, item in value.items() if isinstance(item, dict)]
    if len(names) != 1 or len(arguments) != 1:
        return None
    return CallForm(text[:begin].lstrip(), names[0], arguments[0], text[end:].rstrip())
