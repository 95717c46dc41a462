"""What can be told of an answer so far: what may be a mark of thoughts, or a tool call, is held back for a while."""

from __future__ import annotations

import secrets
from typing import Any

from luthier.generate.request import Piece
from luthier.serve.asking import Asked
from luthier.serve.reasoning import Thinking
from luthier.serve.tools import CallForm


class Held:
    """The text of one answer as it comes."""

    def __init__(self, asked: Asked):
        self._form, self._text, self._given = asked.calls, "", 0
        self._thinking = Thinking(asked.thought.inside) if asked.thought else None
        self._told = asked.thought is not None and asked.thought.told

    def divide(self, text: str, *, last: bool) -> tuple[str, str]:
        """What is thought, if it is to be told, and what is answer."""
        if self._thinking is None:
            return "", text
        thought, answer = self._thinking.take(text, last=last)
        return thought if self._told else "", answer

    def take(self, piece: Piece) -> tuple[str, str, list[dict[str, Any]]]:
        """What can be told now: thoughts, text, and at the end the calls."""
        thought, answer = self.divide(piece.text, last=piece.finish_reason is not None)
        return thought, *self._answer(answer, last=piece.finish_reason is not None)

    def _answer(self, answer: str, *, last: bool) -> tuple[str, list[dict[str, Any]]]:
        if self._form is None:
            return answer, []
        self._text += answer
        if last:
            text, calls = told_calls(self._text, self._form)
            return text[self._given :], calls
        mark = self._form.mark
        if not mark:  # a call may begin at the first character only
            safe = 0 if self._text.lstrip()[:1] in ("", "{") else len(self._text)
        else:
            begin = self._text.find(mark)
            partial = next((n for n in range(len(mark) - 1, 0, -1) if self._text.endswith(mark[:n])), 0)
            safe = begin if begin >= 0 else len(self._text) - partial
            safe = len(self._text[:safe].rstrip())  # blanks before a call are not text
        given, self._given = self._text[self._given : safe], max(safe, self._given)
        return given, []


def told_calls(text: str, form: CallForm | None) -> tuple[str, list[dict[str, Any]]]:
    """The text of an answer without its tool calls, and these as clients read them."""
    if form is None:
        return text, []
    rest, calls = form.read(text)
    made = [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]
    return rest, made
