"""Gopher's rules about repetition (Rae et al. 2021, table A1): pages that say the same thing over and over go.

Phrases of n words are counted by a hash of 44 bits, those of all pages at once.  First an upper limit is found for each
page, with nothing but sorting; only what may be beyond the limit is counted exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.pages import Numbers, Pages, mixed

FREQUENT = {2: 0.20, 3: 0.18, 4: 0.16}
"""Most of a page's characters that the commonest phrase of n words may take up."""
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Most of a page's characters in phrases of n words that stand there more than once."""
LINES, LINE_CHARACTERS = 0.30, 0.20
"""Most lines (and paragraphs) that repeat an earlier one, and most characters in them."""
_BITS = np.uint64(44)
_HASH = np.uint64(2**44 - 1)


def gopher_repeated_lines(pages: Pages) -> NDArray[np.bool_]:
    """More than 30 % of the lines repeat an earlier line, or more than 20 % of the characters stand in such lines."""
    return np.array([_repeats(text.split("\n")) for text in pages.texts], bool)


def gopher_repeated_paragraphs(pages: Pages) -> NDArray[np.bool_]:
    """The same for paragraphs, which stand between blank lines."""
    return np.array(["\n\n" in text and _repeats(text.split("\n\n")) for text in pages.texts], bool)


def _repeats(parts: Sequence[str]) -> bool:
    parts = [part for part in map(str.strip, parts) if part]
    if len(set(parts)) == len(parts):
        return False
    seen: set[str] = set()
    again = 0
    characters = 0
    for part in parts:
        if part in seen:
            again += 1
            characters += len(part)
        seen.add(part)
    return again > LINES * len(parts) or characters > LINE_CHARACTERS * sum(map(len, parts))


def gopher_frequent_ngrams(pages: Pages) -> NDArray[np.bool_]:
    """The commonest phrase of 2, 3 or 4 words has more than 20, 18 or 16 % of the characters."""
    refused = np.zeros(len(pages), bool)
    for phrases in _phrases(pages, FREQUENT):
        owner, counts = phrases.counted()
        often = np.zeros(len(pages), np.int64)
        np.maximum.at(often, owner, counts)
        longest = np.zeros(len(pages), np.int64)
        np.maximum.at(longest, phrases.owner, phrases.length)
        most = FREQUENT[phrases.n] * pages.characters_P
        may = (often > 1) & (often * longest > most)
        if may.any():
            refused[may] |= _frequent(phrases.of(may), len(pages))[may] > most[may]
    return refused


def gopher_repeated_ngrams(pages: Pages) -> NDArray[np.bool_]:
    """Phrases of 5 to 10 words that come again have more than 15 to 10 % of the characters."""
    # words in a longer repeated phrase are in one of 5 words too
    (fives,) = _phrases(pages, (5,))
    owner, counts = fives.counted()
    longest = np.zeros(len(pages), np.int64)
    np.maximum.at(longest, fives.owner, fives.length)
    again = np.bincount(owner, weights=counts - 1, minlength=len(pages))
    may = again * longest > min(REPEATED.values()) * pages.characters_P
    if not may.any():
        return may
    some = pages.only(may)
    beyond = np.zeros(len(some), bool)
    for phrases in _phrases(some, REPEATED):
        beyond |= _covered(phrases, some) > REPEATED[phrases.n] * some.characters_P
    refused = np.zeros(len(pages), bool)
    refused[may] = beyond
    return refused


class _Phrases:
    """Every phrase of n words: its page, a key that equal phrases of a page share, its characters, its first word."""

    def __init__(self, n: int, owner: Numbers, key: NDArray[np.uint64], length: Numbers, start: Numbers):
        self.n, self.owner, self.key, self.length, self.start = n, owner, key, length, start

    def of(self, wanted_P: NDArray[np.bool_]) -> _Phrases:
        """Those of some pages."""
        mine = wanted_P[self.owner]
        return _Phrases(self.n, self.owner[mine], self.key[mine], self.length[mine], self.start[mine])

    def counted(self) -> tuple[Numbers, Numbers]:
        """For every different phrase its page and how often it is there."""
        ordered = np.sort(self.key)
        starts = _firsts(ordered)
        return (ordered[starts] >> _BITS).astype(np.int64), np.diff(np.append(starts, len(ordered)))


def _firsts(ordered: NDArray[np.uint64]) -> Numbers:
    """Where another value begins."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.empty(0, np.int64)


def _phrases(pages: Pages, lengths: Sequence[int] | dict[int, float]) -> Iterator[_Phrases]:
    """The phrases of every length wanted, shortest first."""
    assert len(pages) <= 2**20, "a page's number shares 64 bits with a hash"
    owner_W, total = pages.owner_W, np.concatenate([[0], np.cumsum(pages.length_W)])
    words = len(owner_W)
    hashes = np.zeros(words, np.uint64)
    for n in range(1, max(lengths) + 1):
        many = max(0, words - n + 1)
        # a phrase of n words is the one of n - 1 words and the word behind it
        hashes = mixed(hashes[:many] + pages.hash_W[n - 1 :][:many])
        if n in lengths:
            start = np.flatnonzero(owner_W[:many] == owner_W[n - 1 :][:many])
            owner = owner_W[start]
            key = (owner.astype(np.uint64) << _BITS) | (hashes[start] & _HASH)
            yield _Phrases(n, owner, key, total[start + n] - total[start], start)


def _frequent(phrases: _Phrases, pages: int) -> Numbers:
    """Characters that the commonest phrase of each page takes up, [P]; 0 where none comes twice.

    Of equally common ones the longest counts: the answer must not depend on their order.
    """
    order = np.argsort(phrases.key)
    starts = _firsts(phrases.key[order])
    counts, first = np.diff(np.append(starts, len(order))), order[starts]
    rank = np.zeros(pages, np.int64)
    np.maximum.at(rank, phrases.owner[first], counts << 32 | phrases.length[first])
    return np.where(rank >> 32 > 1, (rank >> 32) * (rank & (2**32 - 1)), 0)


def _covered(phrases: _Phrases, pages: Pages) -> Numbers:
    """Characters of each page that stand in a phrase seen before, [P]; each counts once."""
    order = np.argsort(phrases.key, kind="stable")
    again = np.ones(len(order), bool)
    again[_firsts(phrases.key[order])] = False
    begun = phrases.start[order[again]]
    change = np.zeros(len(pages.hash_W) + 1, np.int64)
    change[begun] += 1
    change[begun + phrases.n] -= 1
    return pages.sums(np.where(np.cumsum(change)[:-1] > 0, pages.length_W, 0))
