"""What every way of producing text offers, and the text of one answer as its tokens arrive."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerFast

from luthier.generate.config import SamplingConfig
from luthier.generate.request import FinishReason

_BROKEN = "\ufffd"


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: its text without stop strings and control tokens, its token ids, and why it ended."""

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason


class Sampler(Protocol):
    """Something that continues prompts given as token ids."""

    def stream(self, prompt: Sequence[int], sampling: SamplingConfig) -> Iterator[str]:
        """Pieces of the answer as they come; joined they are its text."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Completion]:
        """One answer to each prompt, in order."""
        ...


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

    def completion(self, finish_reason: FinishReason) -> Completion:
        """The answer as a whole."""
        return Completion(self._text, tuple(self._ids), finish_reason)

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
