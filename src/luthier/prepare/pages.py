"""Many texts and their words as arrays: what rules of quality ask, for all pages of a batch at once.

In Chinese a word is a character, or a run of other letters and digits; elsewhere it is what stands between spaces.  A
word is known by a hash of 64 bits and its length, so nothing is cut out of the texts.

P pages, W words of all pages one after another, C characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from luthier.prepare.scripts import RANGES

Numbers = NDArray[np.int64]
_SPACE, _OTHER, _LETTER, _LATIN, _HANGUL, _CYRILLIC, _HAN, _KANA = range(8)
_CLASSIFIED = 0x30000
"""Code points that are told apart; beyond them there are no words."""
_LONGEST = 512
"""Characters of a word that enter its hash."""


@dataclass(frozen=True)
class Pages:
    """Pages with their words."""

    texts: Sequence[str]
    chinese_P: NDArray[np.bool_]
    """Whether a page is Chinese, which has no spaces."""
    words_P: Numbers
    """Words of each page."""
    hash_W: NDArray[np.uint64]
    length_W: Numbers
    """Characters of each word."""
    letters_W: NDArray[np.bool_]
    """Whether a word holds a letter."""
    bad_words: re.Pattern[str] | None = None
    """What the rule `c4_bad_words` looks for."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def owner_W(self) -> Numbers:
        """The page of each word."""
        return np.repeat(np.arange(len(self)), self.words_P)

    @property
    def characters_P(self) -> Numbers:
        """Characters of all words of each page."""
        return self.sums(self.length_W)

    def sums(self, values_W: NDArray[np.bool_] | Numbers) -> Numbers:
        """The sum of a value over the words of each page, [P]."""
        ends = np.cumsum(self.words_P)
        total = np.concatenate([[0], np.cumsum(values_W, dtype=np.int64)])
        return total[ends] - total[ends - self.words_P]

    def longest(self) -> Numbers:
        """Characters of the longest word of each page, [P]."""
        found = np.zeros(len(self), np.int64)
        some = self.words_P > 0
        if some.any():
            starts = (np.cumsum(self.words_P) - self.words_P)[some]
            found[some] = np.maximum.reduceat(self.length_W, starts)
        return found

    def only(self, wanted_P: NDArray[np.bool_]) -> Pages:
        """Some of the pages."""
        wanted_W = np.repeat(wanted_P, self.words_P)
        return replace(
            self,
            texts=[text for text, wanted in zip(self.texts, wanted_P.tolist(), strict=True) if wanted],
            chinese_P=self.chinese_P[wanted_P],
            words_P=self.words_P[wanted_P],
            hash_W=self.hash_W[wanted_W],
            length_W=self.length_W[wanted_W],
            letters_W=self.letters_W[wanted_W],
        )


def pages(texts: Sequence[str], bad_words: re.Pattern[str] | None = None) -> Pages:
    """Cut texts into words.  Those that are ASCII are cut as bytes, which are a quarter of the others' size."""
    ascii_P = np.array([text.isascii() for text in texts], bool)
    parts = [_cut([text for text, one in zip(texts, ascii_P.tolist(), strict=True) if one is kind], kind)
             for kind in (True, False)]  # fmt: skip
    order = np.concatenate([np.flatnonzero(ascii_P), np.flatnonzero(~ascii_P)])
    place = np.argsort(order)
    counts = np.concatenate([part.words_P for part in parts])
    starts = np.cumsum(counts) - counts
    at = _ranges(starts[place], counts[place])
    return Pages(
        texts,
        np.concatenate([part.chinese_P for part in parts])[place],
        counts[place],
        np.concatenate([part.hash_W for part in parts])[at],
        np.concatenate([part.length_W for part in parts])[at],
        np.concatenate([part.letters_W for part in parts])[at],
        bad_words,
    )


def _ranges(starts: Numbers, counts: Numbers) -> Numbers:
    """The numbers from each start on, as many as it has, joined."""
    return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def _cut(texts: list[str], is_ascii: bool) -> Pages:
    data = "\n".join([*texts, ""]).encode("ascii" if is_ascii else "utf-32-le") + bytes(8)
    raw = np.frombuffer(data, np.uint8)
    units_C = raw[:-8] if is_ascii else np.minimum(raw[:-8].view(np.uint32), _CLASSIFIED)
    kind_C = _classes()[units_C]
    sizes_P = np.array([len(text) + 1 for text in texts], np.int64)
    chinese_P = np.zeros(len(texts), bool) if is_ascii else _chinese(kind_C, sizes_P)
    inside_C, first_C = kind_C != _SPACE, None
    if chinese_P.any():
        chinese_C = np.repeat(chinese_P, sizes_P)
        single_C = chinese_C & (kind_C >= _HAN)
        inside_C = np.where(chinese_C, kind_C >= _LETTER, inside_C)
        first_C = single_C | np.append(False, single_C[:-1])
    begins_C = inside_C & ~np.append(False, inside_C[:-1])
    if first_C is not None:
        begins_C |= inside_C & first_C
    edges = np.flatnonzero(begins_C | ~inside_C)
    starting = np.flatnonzero(begins_C[edges])
    starts_W, ends_W = edges[starting], edges[np.minimum(starting + 1, len(edges) - 1)]  # a line feed ends every page
    lengths_W = ends_W - starts_W
    letters_W = np.maximum.reduceat(_alphabetic()[units_C], starts_W) > 0 if len(starts_W) else np.empty(0, bool)
    page_ends = np.cumsum(sizes_P)
    words_P = np.diff(np.searchsorted(starts_W, page_ends), prepend=0)
    return Pages(texts, chinese_P, words_P, _hashes(raw, starts_W, lengths_W, is_ascii), lengths_W, letters_W)


def _chinese(kind_C: NDArray[np.uint8], sizes_P: Numbers) -> NDArray[np.bool_]:
    """Whether each page is Chinese, as `luthier.prepare.scripts.is_chinese` says."""
    ends = np.cumsum(sizes_P)

    def count(of_C: NDArray[np.bool_]) -> Numbers:
        total = np.concatenate([[0], np.cumsum(of_C)])
        return total[ends] - total[ends - sizes_P]

    before_C = np.append(np.uint8(_SPACE), kind_C[:-1])
    letters_C = (kind_C >= _LATIN) & (kind_C <= _CYRILLIC)
    han_P, kana_P, runs_P = count(kind_C == _HAN), count(kind_C == _KANA), count(letters_C & (kind_C != before_C))
    return (han_P > 0) & (han_P >= runs_P) & (kana_P * 20 <= han_P)


def _hashes(raw: NDArray[np.uint8], starts_W: Numbers, lengths_W: Numbers, is_ascii: bool) -> NDArray[np.uint64]:
    """A hash of each word: eight bytes of it at a time."""
    each, wide = (8, 1) if is_ascii else (2, 4)
    eight = as_strided(raw[:8].view(np.uint64), (len(raw) - 7,), (1,))
    left = np.array([(1 << 8 * wide * many) - 1 for many in range(each + 1)], np.uint64)
    found = mixed(lengths_W.astype(np.uint64))
    alive = np.arange(len(starts_W))
    for at in range(0, min(_LONGEST, int(lengths_W.max(initial=0))), each):
        alive = alive[lengths_W[alive] > at]
        read = eight[(starts_W[alive] + at) * wide] & left[np.minimum(lengths_W[alive] - at, each)]
        found[alive] = mixed(found[alive] + read)
    return found


def hash_of(words: Sequence[str], *, is_ascii: bool) -> NDArray[np.uint64]:
    """The hash that each word has on ASCII pages, or on others."""
    return _cut(list(words), is_ascii).hash_W


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection that spreads every bit (the finaliser of splitmix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _classes() -> NDArray[np.uint8]:
    """What kind of character each code point is; the last entry stands for all beyond."""
    kinds = np.full(_CLASSIFIED + 1, _OTHER, np.uint8)
    for code in range(_CLASSIFIED):
        character = chr(code)
        if character.isalnum() or character == "_":
            kinds[code] = _LETTER
        elif character.isspace():
            kinds[code] = _SPACE
    named = (("Latin", _LATIN), ("Hangul", _HANGUL), ("Cyrillic", _CYRILLIC), ("Kana", _KANA), ("Han", _HAN))
    for name, kind in named:
        for low, high in RANGES[name]:
            kinds[low : high + 1] = kind
    return kinds


@cache
def _alphabetic() -> NDArray[np.uint8]:
    return np.array([*(chr(code).isalpha() for code in range(_CLASSIFIED)), False], np.uint8)
