"""What is asked of a generator, and what it hands back piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from luthier.base.errors import DataError
from luthier.generate.config import SamplingConfig

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must look like: a JSON schema (as JSON text), a regular expression, or a grammar in Lark's
    notation."""

    kind: Literal["json", "regex", "lark"]
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted."""

    prompt: tuple[int, ...]
    sampling: SamplingConfig
    adapter: str | None = None
    """Name of a loaded adapter; None asks the base."""
    form: Form | None = None
    logprobs: int | None = None
    """None: none are told.  n: each token's own, and those of the n likeliest in its place."""
    bias: tuple[tuple[int, float], ...] = ()
    """What is added to the scores of single tokens before the choice."""


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a token was: natural logarithms of the model's own probabilities, before temperature and penalties;
    NaN for the first token of a text."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of an answer.  The last one of an answer, and only it, has a finish reason."""

    text: str
    """Text that is settled; "" while a character or a possible stop string is incomplete."""
    ids: tuple[int, ...] = ()
    scores: tuple[Score, ...] = ()
    """One for each of `ids` when logprobs were asked for."""
    finish_reason: FinishReason | None = None
    cached: int = 0
    """Tokens of the prompt that were not computed again; told with the first piece."""


Sink = Callable[[Piece | Exception], None]
"""Takes the pieces of an answer as they come; an exception is the last thing it takes."""


@dataclass(eq=False)
class Ticket:
    """One request under way."""

    request: Request
    sink: Sink
    cancelled: bool = False
    """Set it, from any thread, and the answer ends without a further piece."""


def room_for(request: Request, max_length: int) -> int:
    """How many tokens an answer may have behind its prompt.

    Raises:
        DataError: code `bad_prompt`, or `context_length_exceeded`, by which OpenAI's clients know it.
    """
    length = len(request.prompt)
    if not length:
        raise DataError("a prompt is empty", code="bad_prompt")
    if length >= max_length:
        why = f"a prompt of {length} tokens leaves no room for an answer, the model holds {max_length}"
        raise DataError(why, code="context_length_exceeded", fix="Shorten it")
    return max_length - length
