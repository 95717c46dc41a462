"""What every way of producing text offers, and the text of one answer as its tokens arrive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from transformers import PreTrainedTokenizerFast

from luthier.base.errors import LuthierError
from luthier.generate.config import SamplingConfig
from luthier.generate.request import FinishReason, Piece, Request
from luthier.model.causal import Model

K = TypeVar("K")

_BROKEN = "\ufffd"


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: its text without stop strings and control tokens, its token ids, and why it ended."""

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Completion:
        """The answer that came in these pieces."""
        reason = pieces[-1].finish_reason
        assert reason is not None
        ids = tuple(token for piece in pieces for token in piece.ids)
        return cls("".join(piece.text for piece in pieces), ids, reason)


class Sampler(Protocol):
    """Something that continues prompts given as token ids."""

    def stream(self, prompt: Sequence[int], sampling: SamplingConfig) -> Iterator[str]:
        """Pieces of the answer as they come; joined they are its text."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Completion]:
        """One answer to each prompt, in order."""
        ...


class ByRequests(ABC):
    """A Sampler made of what takes single requests."""

    @abstractmethod
    def pieces(self, request: Request) -> Iterator[Piece]:
        """The answer to one request, piece by piece.  Leaving the loop early ends the answer.

        Raises:
            DataError: the prompt is empty or fills the model's context.
        """
        ...

    @abstractmethod
    def answers(self, requests: Iterable[tuple[K, Request]]) -> Iterator[tuple[K, Completion | LuthierError]]:
        """Answers as they are finished, each with the key of its request; what is wrong with a request is its answer.

        Requests are taken from the iterable as there is room, so there can be any number of them.
        """
        ...

    def stream(self, prompt: Sequence[int], sampling: SamplingConfig) -> Iterator[str]:
        """Pieces of the answer as they come.  Raises as `pieces`."""
        return (piece.text for piece in self.pieces(Request(tuple(prompt), sampling)) if piece.text)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Completion]:
        """One answer to each prompt, in order.  The n-th one has the seed plus n, so that equal prompts get different
        answers where there is a choice.  Raises as `pieces`."""
        seeds = (sampling.model_copy(update={"seed": sampling.seed + n}) for n in range(len(prompts)))
        asked = (Request(tuple(prompt), own) for prompt, own in zip(prompts, seeds, strict=True))
        found: dict[int, Completion] = {}
        for n, answer in self.answers(enumerate(asked)):
            if isinstance(answer, LuthierError):
                raise answer
            found[n] = answer
        return [found[n] for n in range(len(prompts))]


def ends_of(model: Model, stop_ids: Collection[int]) -> frozenset[int]:
    """The tokens that end an answer: these, and the model's and the tokenizer's own."""
    own: Any = model.base.generation_config.eos_token_id
    ends: list[Any] = [*stop_ids, model.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return frozenset(token for token in ends if isinstance(token, int))


class Answer:
    """One answer under construction: token ids go in, text that can no longer change comes out.

    A character of several tokens appears when it is complete, and text that may be the start of a stop string is
    held back until it is clear that it is not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_ids: Collection[int], stop: Sequence[str]):
        self._tokenizer, self._stop_ids, self._stop = tokenizer, stop_ids, stop
        self._ids: list[int] = []
        self._given = 0  # tokens whose text has been read
        self._context = 0  # decoding starts here: a token's text can depend on the one before it
        self._text, self._released = "", 0
        self.finished = False

    def feed(self, token: int) -> str:
        """Take one token and return the text it settles; nothing once the answer has finished."""
        if self.finished:
            return ""
        self._ids.append(token)
        if token in self._stop_ids:
            return self.finish()
        self._read(whole=False)
        ends = [at for at in (self._text.find(stop, self._released) for stop in self._stop) if at >= 0]
        if ends:
            self._text = self._text[: min(ends)]
            self.finished = True
            return self._release(len(self._text))
        return self._release(len(self._text) - self._held())

    def finish(self) -> str:
        """End the answer and return what was held back."""
        self.finished = True
        self._read(whole=True)
        return self._release(len(self._text))

    def add(self, token: int, *, complete: bool, room: int) -> tuple[str, FinishReason | None]:
        """Take one token; the text it settles, and why the answer has ended if it has.

        Args:
            complete: whether nothing may follow it.
            room: most tokens of the answer.
        """
        text = self.feed(token)
        if self.finished or complete:
            reason = "stop"
        else:
            reason = "length" if len(self._ids) >= room else None
        if reason and not self.finished:
            text += self.finish()
        return text, reason

    def _read(self, *, whole: bool) -> None:
        before = self._decode(self._ids[self._context : self._given])
        now = self._decode(self._ids[self._context :])
        if len(now) > len(before) and (whole or not now.endswith(_BROKEN)):
            self._text += now[len(before) :]
            self._context, self._given = self._given, len(self._ids)

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _held(self) -> int:
        """Characters at the end that may begin a stop string."""
        return max(
            (n for stop in self._stop for n in range(1, len(stop)) if self._text.endswith(stop[:n])),
            default=0,
        )

    def _release(self, end: int) -> str:
        piece = self._text[self._released : end]
        self._released = max(self._released, end)
        return piece
