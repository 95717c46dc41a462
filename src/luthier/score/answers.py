"""The answer inside what a model wrote: an option's letter, a number.

Letters are read as EvalScope reads them: what stands behind the last "ANSWER:" or "答案：" that is followed by an
option, else the last capital letter of the text if it is an option.  A text that names several options names none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

LETTERS = "ABCDEFGHIJ"
"""Of the options of a question, ten at most."""

_MARK = re.compile(r"(?:answer\s*[:：]|答案\s*[:：是为])\s*\**\s*", re.IGNORECASE)
_DRESS = re.compile(r"(?:\$+|\\\(|\\(?:boxed|fbox|text|textbf|mathbf|mathrm)\s*\{|[(\[（【]|\s)*")
_LABELS = re.compile(r"[A-Za-z0-9]+(?:\s*(?:[,，/、]|\b(?:and|or|和)\b)\s*[A-Za-z0-9]+)*")
_WORD = re.compile(r"[A-Za-z0-9]+")

_NUMBER = re.compile(r"[-−]?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+(?!\d|\.\d))?|[-−]?\$?\.\d+")
_MARKED_NUMBER = re.compile(
    r"####\s*(.+)|\\boxed\s*\{([^{}]+)\}|(?:answer\s*(?:is|[:：])|答案\s*[:：是为])\s*(.+)", re.IGNORECASE
)


def letters(text: str, options: int) -> str:
    """The options a text names, as letters in order of the alphabet; "" for none."""
    allowed = set(LETTERS[:options])
    for mark in reversed(list(_MARK.finditer(text))):
        start = _DRESS.match(text, mark.end())
        assert start is not None
        labels = _LABELS.match(text, start.end())
        named: set[str] = set()
        for word in _WORD.findall(labels[0]) if labels else ():
            if not set(word) <= allowed:
                if word in ("and", "or"):
                    continue
                break
            named |= set(word)
        if named:
            return "".join(sorted(named))
    last = next((sign for sign in reversed(text) if sign.isupper()), "")
    return last if last in allowed else ""


def number(text: str) -> Fraction | None:
    """The number a solution ends with: behind the last ####, \\boxed{ or "the answer is", else the last of all."""
    for mark in reversed(list(_MARKED_NUMBER.finditer(text))):
        found = _NUMBER.search(next(part for part in mark.groups() if part is not None))
        if found:
            return _value(found[0])
    every = _NUMBER.findall(text)
    return _value(every[-1]) if every else None


def same_number(prediction: str, references: Sequence[str]) -> bool:
    """Whether a solution ends with the number of a reference."""
    found = number(prediction)
    return found is not None and any(found == number(reference) for reference in references)


def _value(text: str) -> Fraction | None:
    plain = text.replace(",", "").replace("$", "").replace("−", "-").replace(" ", "")
    top, slash, bottom = plain.partition("/")
    if slash and int(bottom) == 0:
        return None
    return Fraction(top) / (int(bottom) if slash else 1)
