"""What one line of a user's data means.

A row of any supported shape becomes one of these; every later stage sees records only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Where:
    """The place a record came from; `line` is 1-based (a row number where the format has no lines)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    `weight` scales the loss of the turn's tokens: 0 masks it, None leaves the choice to the objective (assistant
    turns are trained, others are not).
    """

    role: Role
    content: str
    weight: float | None = None
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Json], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation.  `weight` scales the loss of the whole record."""

    messages: tuple[Message, ...]
    where: Where
    tools: tuple[Mapping[str, Json], ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, trained on from its first token to its end."""

    text: str
    where: Where
    weight: float = 1.0


Record = Chat | Text


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row, or a part of it, cannot be used: a stable code, the path inside the row, one sentence."""

    code: str
    where: Where
    message: str
    path: str = ""

    def __str__(self) -> str:
        at = f"{self.where} {self.path}" if self.path else str(self.where)
        return f"{at}: {self.message} [{self.code}]"


class BadRow(Exception):
    """Raised while one row is read; caught by the data pipeline, which applies the row policy."""

    def __init__(self, fault: Fault):
        self.fault = fault
        super().__init__(str(fault))
