"""Gopher's rules about repetition (Rae et al. 2021, table A1): pages that say the same thing over and over go.

A phrase of n words is counted exactly, but only on the pages where it can matter: hashes of the phrases of many pages
are sorted at once, and what they leave possible is compared with the limit first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.quality import REPETITION_RULES, Page

FREQUENT = {2: 0.20, 3: 0.18, 4: 0.16}
"""Most of a page's characters that the commonest phrase of n words may take up."""
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Most of a page's characters in phrases of n words that stand there more than once."""
LINES, LINE_CHARACTERS = 0.30, 0.20
"""Most lines (and paragraphs) that repeat an earlier one, and most characters in them."""
_HASH = np.uint64(2**40 - 1)
_PAGES = 2**20


def repeats_lines(page: Page) -> bool:
    """More than 30 % of the lines repeat an earlier line, or more than 20 % of the characters stand in such lines."""
    return _repeats(page.lines)


def repeats_paragraphs(page: Page) -> bool:
    """The same for paragraphs, which stand between blank lines."""
    if "\n\n" not in page.text:
        return False
    return _repeats([part for part in map(str.strip, page.text.split("\n\n")) if part])


def _repeats(parts: Sequence[str]) -> bool:
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


def frequent_share(words: Sequence[str], n: int) -> float:
    """Share of the characters of all words that the commonest phrase of n words takes up; 0 when none comes twice."""
    phrases = Counter(zip(*(words[at:] for at in range(n)), strict=False))
    most = max(phrases.values(), default=0)
    if most < 2:
        return 0.0
    # of equally common ones the longest: the answer must not depend on their order
    longest = max(sum(map(len, phrase)) for phrase, count in phrases.items() if count == most)
    return most * longest / max(1, sum(map(len, words)))


def repeated_share(words: Sequence[str], n: int) -> float:
    """Share of the characters of all words that stand in a phrase of n words seen before; each counts once."""
    seen: set[tuple[str, ...]] = set()
    covered = bytearray(len(words))
    for at, phrase in enumerate(zip(*(words[at:] for at in range(n)), strict=False)):
        if phrase in seen:
            covered[at : at + n] = b"\x01" * n
        seen.add(phrase)
    characters = sum(len(word) for word, again in zip(words, covered, strict=True) if again)
    return characters / max(1, sum(map(len, words)))


def repeats_frequent(page: Page) -> bool:
    """The commonest phrase of 2, 3 or 4 words has more than 20, 18 or 16 % of the characters."""
    return any(frequent_share(page.words, n) > most for n, most in FREQUENT.items())


def repeats_ngrams(page: Page) -> bool:
    """Phrases of 5 to 10 words that come again have more than 15 to 10 % of the characters."""
    for n, most in REPEATED.items():
        share = repeated_share(page.words, n)
        if share > most:
            return True
        if share <= min(REPEATED.values()):  # words in a longer repeated phrase are in a shorter one too
            return False
    return False


def possible(pages: Sequence[Page]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pages `repeats_frequent` and `repeats_ngrams` have to look at, both bool [pages]; for all others both are
    false.

    An upper limit: every phrase is taken to consist of the page's longest word.
    """
    assert len(pages) <= _PAGES, "a page's number shares 64 bits with a hash"
    lengths = np.array([len(page.words) for page in pages], np.int64)
    if not lengths.sum():
        return np.zeros(len(pages), bool), np.zeros(len(pages), bool)
    every = chain.from_iterable(page.words for page in pages)
    hashes = np.fromiter(map(hash, every), np.int64, int(lengths.sum()))
    longest = np.array([max(map(len, page.words), default=0) for page in pages], np.int64)
    characters = np.array([page.characters for page in pages], np.int64)
    owner = np.repeat(np.arange(len(pages), dtype=np.int64), lengths)
    frequent, mixed = np.zeros(len(pages), bool), np.zeros(len(hashes), np.uint64)
    repeated = np.zeros(len(pages), bool)
    for n in range(1, 6):
        # a phrase of n words is the one of n - 1 words and the word behind it
        mixed = _mix(mixed[: len(hashes) - n + 1] + hashes[n - 1 :].view(np.uint64))
        if n == 1:
            continue
        whole = owner[: len(mixed)] == owner[n - 1 :]
        keys = ((owner[: len(mixed)].astype(np.uint64) << np.uint64(40)) | (mixed & _HASH))[whole]
        keys.sort()
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
        counts = np.diff(np.append(starts, len(keys)))
        of = (keys[starts] >> np.uint64(40)).astype(np.int64)
        if n in FREQUENT:
            most = np.zeros(len(pages), np.int64)
            np.maximum.at(most, of, counts)
            frequent |= (most > 1) & (most * n * longest > FREQUENT[n] * characters)
        else:
            again = np.bincount(of, weights=counts - 1, minlength=len(pages))
            repeated = again * n * longest > min(REPEATED.values()) * characters
    return frequent, repeated


def reasons(pages: Sequence[Page], asked: Sequence[str]) -> list[str | None]:
    """For every page the first of the rules asked for that refuses it."""
    lines, paragraphs, frequent, repeated = (name in asked for name in REPETITION_RULES)
    none = np.zeros(len(pages), bool)
    may_frequent, may_repeated = possible(pages) if pages and (frequent or repeated) else (none, none)
    found: list[str | None] = []
    for page, phrases, long_phrases in zip(pages, may_frequent.tolist(), may_repeated.tolist(), strict=True):
        refused = (
            lines and repeats_lines(page),
            paragraphs and repeats_paragraphs(page),
            frequent and phrases and repeats_frequent(page),
            repeated and long_phrases and repeats_ngrams(page),
        )
        found.append(next((name for name, yes in zip(REPETITION_RULES, refused, strict=True) if yes), None))
    return found


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection that spreads every bit (the finaliser of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
