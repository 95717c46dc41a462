"""Texts as sets of shingles: overlapping runs of words, or of characters where a script has no spaces.

Case, punctuation, width and composition of characters do not count (NFKC, lower case; everything that is no letter,
mark or digit separates).  Chinese, Japanese and the scripts of south-east Asia are cut into characters, all others
into words; what the larger part of a text is cut into decides how long its shingles are.
"""

from __future__ import annotations

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


_UNSEEN, _SEPARATOR, _LETTER, _ALONE, _BETWEEN = range(5)
_WIDE, _WIDE_SPACE = range(0xFF01, 0xFF5F), 0x3000
"""Full-width forms of ASCII from ! to ~, and the space of that width."""
_END = "\x1e"
"""Stands between texts that are treated as one; a separator inside of them."""


def is_single(character: str) -> bool:
    """Whether a character belongs to a script without spaces."""
    code = ord(character)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _SINGLE)


def _kind(character: str) -> int:
    if is_single(character):
        return _ALONE
    return _LETTER if unicodedata.category(character).startswith(_KEPT) else _SEPARATOR


_kinds = np.full(0x110000, _UNSEEN, np.uint8)
"""What each character is, once it has been met."""
_kinds[ord(_END)] = _BETWEEN


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
    """The tokens of texts.  Many are treated as one, which is many times faster than one by one."""
    plain = [text.isascii() for text in texts]
    words = iter(_words([text for text, is_plain in zip(texts, plain, strict=True) if is_plain], sizes))
    other = iter(_mixed([text for text, is_plain in zip(texts, plain, strict=True) if not is_plain], sizes))
    return [next(words if is_plain else other) for is_plain in plain]


def _as_one(texts: Sequence[str]) -> str:
    joined = _END.join(texts)
    if joined.count(_END) >= len(texts):
        joined = _END.join(text.replace(_END, " ") for text in texts)
    return joined


_ASCII = "".join(c.lower() if c.isalnum() or c == _END else " " for c in map(chr, range(128))).encode().ljust(256)


def _words(texts: Sequence[str], sizes: Sizes) -> list[Tokens]:
    """The tokens of texts in ASCII, where every character is a letter, a digit or a separator."""
    if not texts:
        return []
    written = np.frombuffer(_as_one(texts).encode().translate(_ASCII), np.uint8)
    kept = np.ones(len(written), bool)
    kept[1:] = (written[1:] != ord(" ")) | (written[:-1] != ord(" "))
    pieces = [text.strip(" ") for text in written[kept].tobytes().decode().split(_END)]
    return [Tokens(text, text.count(" ") + 1 if text else 0, sizes.words) for text in pieces]


def _mixed(texts: Sequence[str], sizes: Sizes) -> list[Tokens]:
    """The tokens of any texts."""
    if not texts:
        return []
    codes = _codes(_composed(_as_one(texts)).lower())
    kinds = _kinds_of(codes)
    kept = np.flatnonzero(kinds != _SEPARATOR)
    codes, kinds = codes[kept], kinds[kept]
    # a token begins behind a separator or the end of a text, and at and behind every character that stands alone
    begins = np.ones(len(kept), bool)
    begins[1:] = (np.diff(kept) > 1) | (kinds[1:] == _ALONE) | (kinds[:-1] >= _ALONE)
    ends = kinds == _BETWEEN
    begins &= ~ends
    first = np.ones(len(kept), bool)
    first[1:] = ends[:-1]
    spaced = begins & ~first
    places = np.arange(len(kept)) + np.cumsum(spaced)
    written = np.full(len(kept) + int(spaced.sum()), ord(" "), np.uint32)
    written[places] = codes
    pieces = _text(written).split(_END)
    owner = np.cumsum(ends)
    numbers = np.bincount(owner[begins], minlength=len(texts))
    alone = np.bincount(owner[kinds == _ALONE], minlength=len(texts))
    each = np.where(2 * alone > numbers, sizes.characters, sizes.words)
    return list(map(Tokens, pieces, numbers.tolist(), each.tolist()))


def _composed(joined: str) -> str:
    """Texts in NFKC.  Normalising takes longer than all else here, so it is for the few that still need it once
    full-width forms, which hardly a Chinese text lacks, have become plain ones."""
    codes = _codes(joined).copy()
    codes[codes - _WIDE.start < len(_WIDE)] -= _WIDE.start - ord("!")
    codes[codes == _WIDE_SPACE] = ord(" ")
    normal, put = unicodedata.is_normalized, unicodedata.normalize
    return _END.join([text if normal("NFKC", text) else put("NFKC", text) for text in _text(codes).split(_END)])


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _text(codes: NDArray[np.uint32]) -> str:
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


def _kinds_of(codes: NDArray[np.uint32]) -> NDArray[np.uint8]:
    kinds = _kinds[codes]
    if (kinds == _UNSEEN).any():
        for code in np.unique(codes[kinds == _UNSEEN]).tolist():
            _kinds[code] = _kind(chr(code))
        kinds = _kinds[codes]
    return kinds


@dataclass(frozen=True)
class ShingleSets:
    """The shingles of several texts: 40-bit hashes, ascending and different within each text."""

    hashes: NDArray[np.uint64]
    """[S]"""
    counts: NDArray[np.int64]
    """Shingles of each text, [rows]."""


_HASH_BITS = np.uint64(40)
_HASH_MASK = np.uint64(2**40 - 1)


class _Hashes(dict[str, int]):
    """The hash of every token, made when it is first asked for."""

    def __missing__(self, token: str) -> int:
        if len(self) >= _REMEMBERED:
            self.clear()
        data = token.encode("utf-8", "surrogatepass")
        found = self[token] = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
        return found


_known = _Hashes()


def shingle_hashes(texts: Sequence[Tokens]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Every shingle of every text: which text it is of, int64 [S], and its hash, uint64 [S].

    A text with fewer tokens than a shingle has none.
    """
    lengths = np.array([tokens.number for tokens in texts], np.int64)
    every = " ".join([tokens.text for tokens in texts if tokens.number])
    each = map(_known.__getitem__, every.split(" ")) if every else ()
    hashes = np.fromiter(each, np.uint64, int(lengths.sum()))
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
    joined = (owners.astype(np.uint64) << _HASH_BITS) | (hashes & _HASH_MASK)
    joined.sort()
    joined = joined[np.append(True, joined[1:] != joined[:-1])[: len(joined)]]
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
