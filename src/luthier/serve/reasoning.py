"""What a model thinks before it answers, told apart from the answer: `<think>` ... `</think>`.

Templates of models that think either leave the first mark to the model or write it themselves, at the end of the
prompt.  White space between marks and text belongs to neither.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

BEGIN, END = "<think>", "</think>"
_TAIL = 16
"""Tokens at the end of a prompt that may hold the mark."""


def begins_thinking(tokenizer: PreTrainedTokenizerFast, prompt: tuple[int, ...]) -> bool:
    """Whether a prompt ends inside a thought."""
    tail = tokenizer.decode(list(prompt[-_TAIL:]), clean_up_tokenization_spaces=False)
    return str(tail).rstrip().endswith(BEGIN)


class Thinking:
    """Divides a text that arrives in pieces.

    Args:
        inside: whether the text begins inside a thought.
    """

    def __init__(self, inside: bool):
        self._state = "inside" if inside else "before"
        self._waiting = ""
        self._told = False

    def take(self, text: str, *, last: bool) -> tuple[str, str]:
        """What of the text until now is thought and what is answer, as far as it is clear and was not told before."""
        self._waiting += text
        thought = ""
        if self._state == "before":
            bare = self._waiting.lstrip()
            if bare.startswith(BEGIN):
                self._state, self._waiting = "inside", bare[len(BEGIN) :]
            elif not last and BEGIN.startswith(bare):
                return "", ""
            else:
                self._state, self._told = "after", True  # no thought: the answer as it is
        if self._state == "inside":
            thought, found, rest = self._waiting.partition(END)
            if found:
                self._state, self._waiting, self._told, thought = "after", rest, False, self._begun(thought).rstrip()
            elif last:
                self._waiting, thought = "", self._begun(thought).rstrip()
                return thought, ""
            else:
                safe = len(thought) - _partial(thought)
                safe = len(thought[:safe].rstrip())
                self._waiting, thought = thought[safe:], self._begun(thought[:safe])
                return thought, ""
        answer, self._waiting = self._begun(self._waiting), ""
        return thought, answer

    def _begun(self, text: str) -> str:
        """A part of one side, without the white space that it begins with."""
        text = text if self._told else text.lstrip()
        self._told = self._told or bool(text)
        return text


def _partial(text: str) -> int:
    """Characters at the end that may begin the last mark."""
    return next((n for n in range(len(END) - 1, 0, -1) if text.endswith(END[:n])), 0)
