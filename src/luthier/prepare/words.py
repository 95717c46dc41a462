"""Texts as words, in Chinese and English: for counting, for comparing, and cut so that nothing is lost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.prepare.scripts import HAN
from luthier.prepare.segment import segment

_KANA = "\u3040-\u30ff"
_WORD = rf"(?:(?![{HAN}{_KANA}])[^\W_])+(?:['’\-](?:(?![{HAN}{_KANA}])[^\W_])+)*"
_COUNTED = re.compile(rf"[{HAN}{_KANA}]|{_WORD}")
_CHINESE = re.compile(rf"[{HAN}]+")
_KEPT = re.compile(
    r"```.*?```|`[^`\n]+`|https?://\S+|www\.\S+|\S+@\S+\.\w+|\{\{.*?\}\}|<[^<>\s][^<>]{0,80}>|\$[^$\n]+\$", re.DOTALL
)
"""What must not be touched: code, addresses, placeholders, tags, formulas."""
_PIECE = re.compile(rf"(?P<chinese>[{HAN}]+)|(?P<word>{_WORD})|(?P<rest>\s+|.)", re.DOTALL)


def counted(text: str) -> list[str]:
    """The words of a text in lower case; each Chinese or Japanese character is one."""
    return _COUNTED.findall(text.lower())


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text; all pieces joined are the text."""

    text: str
    word: bool
    """Whether it is a word that may be changed: letters, no number, no code."""

    @property
    def chinese(self) -> bool:
        """Whether it is written in Chinese characters."""
        return _CHINESE.fullmatch(self.text) is not None


def cut(text: str) -> list[Piece]:
    """A text as words and what stands between them; Chinese is segmented by jieba.

    Raises:
        MissingExtra: jieba, when there is Chinese.
    """
    pieces: list[Piece] = []
    start = 0
    for kept in _KEPT.finditer(text):
        pieces += _cut(text[start : kept.start()])
        pieces.append(Piece(kept[0], False))
        start = kept.end()
    return pieces + _cut(text[start:])


def _cut(text: str) -> list[Piece]:
    pieces: list[Piece] = []
    for found in _PIECE.finditer(text):
        if found.lastgroup == "chinese":
            pieces += [Piece(word, True) for word in segment(found[0])]
        else:
            changeable = found.lastgroup == "word" and not any(character.isdigit() for character in found[0])
            pieces.append(Piece(found[0], changeable))
    return pieces


_SENTENCE = re.compile(r".+?(?:[。！？!?；;…]+[”’\"')\]）】」』]*|(?<![A-Z])\.+[\"')\]]*(?=\s|$)|\n|$)\s*", re.DOTALL)


def sentences(text: str) -> list[str]:
    """A text as sentences, each with the white space behind it; joined they are the text."""
    return [found[0] for found in _SENTENCE.finditer(text) if found[0]]
