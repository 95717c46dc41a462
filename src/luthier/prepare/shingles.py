"""Texts as sets of shingles: overlapping runs of words, or of characters where a script has no spaces.

Case, punctuation, width and composition of characters do not count (NFKC, lower case; everything that is no letter,
mark or digit separates).  Chinese, Japanese and the scripts of south-east Asia are cut into characters, all others
into words; what the larger part of a text is cut into decides how long its shingles are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SINGLE = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Characters that are a token each."""
_KEPT = ("L", "M", "N")
_REMEMBERED = 200_000
"""Tokens whose hash is remembered; a vocabulary seldom has more that come twice."""


_SINGLES = re.compile(f"[{''.join(f'{chr(low)}-{chr(high)}' for low, high in _SINGLE)}]")


def is_single(character: str) -> bool:
    """Whether a character belongs to a script without spaces."""
    code = ord(character)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _SINGLE)


class _Table(dict[int, int | str]):
    """For `str.translate`: separators become spaces, single characters stand between spaces."""

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        found: int | str = code
        if is_single(character):
            found = f" {character} "
        elif not unicodedata.category(character).startswith(_KEPT):
            found = " "
        self[code] = found
        return found


_TABLE = _Table({0x1E: 0x1E})


@dataclass(frozen=True)
class Sizes:
    """Tokens in a shingle."""

    words: int
    characters: int


class Tokens(NamedTuple):
    """A text as tokens."""

    text: str
    """The tokens with single spaces between them."""
    number: int
    size: int
    """How many make a shingle of this text."""


def tokenise(texts: Sequence[str], sizes: Sizes) -> list[Tokens]:
    """The tokens of texts.  All texts are treated as one, which is many times faster than one by one."""
    ascii = [text.isascii() for text in texts]
    plain = iter(_tokenise([text for text, is_ascii in zip(texts, ascii, strict=True) if is_ascii]))
    other = iter(_tokenise([text for text, is_ascii in zip(texts, ascii, strict=True) if not is_ascii]))
    found: list[Tokens] = []
    for is_ascii in ascii:
        text = next(plain if is_ascii else other)
        number = text.count(" ") + 1 if text else 0
        size = sizes.words if is_ascii or not _is_single(text, number) else sizes.characters
        found.append(Tokens(text, number, size))
    return found


def _is_single(text: str, number: int) -> bool:
    """Whether the larger part of a text's tokens are characters of a script without spaces."""
    return 2 * len(_SINGLES.findall(text)) > number


_END = "\x1e"
"""Stands between texts that are treated as one; a separator inside of them."""


def _tokenise(texts: Sequence[str]) -> list[str]:
    """The tokens of texts with single spaces between them."""
    if not texts:
        return []
    joined = _END.join(texts)
    if joined.count(_END) >= len(texts):
        joined = _END.join(text.replace(_END, " ") for text in texts)
    if not joined.isascii():
        joined = unicodedata.normalize("NFKC", joined)
    joined = joined.lower().translate(_TABLE)
    while "  " in joined:
        joined = joined.replace("  ", " ")
    return [text.strip(" ") for text in joined.split(_END)]


@dataclass(frozen=True)
class ShingleSets:
    """The shingles of several texts: 40-bit hashes, ascending and different within each text."""

    hashes: NDArray[np.uint64]
    """[S]"""
    counts: NDArray[np.int64]
    """Shingles of each text, [rows]."""


_HASH_BITS = np.uint64(40)
_HASH_MASK = np.uint64(2**40 - 1)
_known: dict[str, int] = {}


def _token_hash(token: str) -> int:
    found = _known.get(token)
    if found is None:
        if len(_known) >= _REMEMBERED:
            _known.clear()
        data = token.encode("utf-8", "surrogatepass")
        found = _known[token] = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
    return found


def shingle_hashes(texts: Sequence[Tokens]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Every shingle of every text: which text it is of, int64 [S], and its hash, uint64 [S].

    A text with fewer tokens than a shingle has none.
    """
    hashes = np.array([_token_hash(token) for tokens in texts for token in tokens.text.split(" ") if token], np.uint64)
    lengths = np.array([tokens.number for tokens in texts], np.int64)
    starts = np.cumsum(lengths) - lengths
    owners: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    found: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    for size in sorted({tokens.size for tokens in texts}):
        mine = np.array([number for number, tokens in enumerate(texts) if tokens.size == size], np.int64)
        counts = np.maximum(lengths[mine] - size + 1, 0)
        first = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first += np.repeat(starts[mine], counts)
        mixed = np.zeros(len(first), np.uint64)
        for place in range(size):
            mixed = _mix(mixed + hashes[first + place])
        owners.append(np.repeat(mine, counts))
        found.append(mixed)
    return np.concatenate(owners), np.concatenate(found)


def shingle_sets(texts: Sequence[Tokens]) -> ShingleSets:
    """The shingles of texts as sets; at most 2**24 texts at a time."""
    owners, hashes = shingle_hashes(texts)
    joined = np.unique((owners.astype(np.uint64) << _HASH_BITS) | (hashes & _HASH_MASK))
    counts = np.bincount((joined >> _HASH_BITS).astype(np.int64), minlength=len(texts))
    return ShingleSets(joined & _HASH_MASK, counts)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection that spreads every bit (the finaliser of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31)) ^ np.uint64(0x9E3779B97F4A7C15)


def jaccard(one: ShingleSets, other: ShingleSets) -> NDArray[np.float64]:
    """Similarity of the n-th set of both: shared shingles over all of them; float64 [rows].  Empty sets give 0."""
    rows = len(one.counts)
    assert rows <= 2**24, "a pair's number shares 64 bits with a hash"
    number = np.arange(rows, dtype=np.uint64)
    keys = np.concatenate([(np.repeat(number, sets.counts) << _HASH_BITS) | sets.hashes for sets in (one, other)])
    keys.sort()
    owners = (keys[1:][keys[1:] == keys[:-1]] >> _HASH_BITS).astype(np.int64)
    shared = np.bincount(owners, minlength=rows)
    union = one.counts + other.counts - shared
    return shared / np.maximum(union, 1)
