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


Label = str | int | float | tuple[str | int, ...]
"""A class by name or number, a value to predict, or several classes at once."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ways to go on from one prompt, of which one was preferred."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    where: Where
    tools: tuple[Mapping[str, Json], ...] = ()
    weight: float = 1.0
    margin: float | None = None
    """By how much the chosen side was rated higher, when somebody rated both."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A conversation whose last answer was found good or bad (KTO)."""

    messages: tuple[Message, ...]
    good: bool
    where: Where
    tools: tuple[Mapping[str, Json], ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, a pair of texts or a conversation with its label: a class, several classes, or a number."""

    text: str
    label: Label
    where: Where
    pair: str | None = None
    """The second text of a pair."""
    messages: tuple[Message, ...] = ()
    """The conversation, where that is what was labelled; `text` holds what is said in it."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Tagged:
    """Tokens with a tag each, in the scheme of the data (BIO, BMES, plain classes)."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    where: Where
    weight: float = 1.0
    text: str = ""
    """What the tokens are words of, where the row told tags as places in a text."""
    places: tuple[tuple[int, int], ...] = ()
    """Where each token lies in it: start and end (exclusive)."""


@dataclass(frozen=True, slots=True)
class Similar:
    """A text with others that are like it or not, or two texts with the degree of their likeness."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    where: Where
    score: float | None = None
    """How alike `query` and the only positive are."""
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked.  `answer` is a reference to judge its answer by, `action` and `reward` an earlier one."""

    messages: tuple[Message, ...]
    where: Where
    tools: tuple[Mapping[str, Json], ...] = ()
    answer: Json = None
    action: str | None = None
    reward: float | None = None
    weight: float = 1.0


Record = Chat | Text | Pair | Judged | Labelled | Tagged | Similar | Prompt
Task = Literal["language", "preference", "kto", "classification", "tagging", "similarity", "prompt"]
"""What a row can be meant for: language takes Chat and Text, preference Pair, kto Judged, and so on."""


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
