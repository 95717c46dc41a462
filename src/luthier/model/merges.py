"""New tokens learned from text: a BPE tokenizer's training taken up again where it ended.

What the tokenizer does now stays as it is; its pieces are merely joined further.  So old text keeps its tokens unless
a new one fits, and each new token is a sequence of old ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

from transformers import PreTrainedTokenizerFast

Pieces = tuple[int, ...]
"""A word as ids of the tokenizer."""

_BATCH = 1000
"""Texts tokenised at once."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Two tokens that become one."""

    left: int
    right: int
    into: int
    """Its id; ids above the old vocabulary are new."""


def count_words(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Counter[Pieces]:
    """How often each word of several pieces stands in the texts; words are those the tokenizer cuts text into."""
    words: Counter[Pieces] = Counter()
    batch: list[str] = []

    def take() -> None:
        for encoded in tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False):
            word: list[int] = []
            last: int | None = None
            for token, place in zip(encoded.ids, encoded.word_ids, strict=True):
                if place != last and len(word) > 1:
                    words[tuple(word)] += 1
                word = [*word, token] if place == last and place is not None else [token]
                last = place
            if len(word) > 1:
                words[tuple(word)] += 1
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            take()
    take()
    return words


def learn_merges(words: Mapping[Pieces, int], names: Mapping[int, str], count: int, first: int) -> list[Merge]:
    """Join the most frequent pair of neighbours, again and again, until there are `count` new tokens.

    Among equally frequent pairs the one with the lower ids comes first.  A pair that stands only once is not joined.

    Args:
        names: what each token is called in the vocabulary.
        first: the id of the first new token.

    Returns:
        The merges in order; some may lead to a token that there was already.
    """
    named = {name: token for token, name in names.items()}
    called = dict(names)
    spelled = [list(word) for word in words]
    times = list(words.values())
    pairs: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for number, word in enumerate(spelled):
        for pair in pairwise(word):
            pairs[pair] += times[number]
            places[pair].add(number)
    # Counts only ever change through the heap; an entry whose count is no longer true is passed over.
    heap = [(-often, pair) for pair, often in pairs.items()]
    heapify(heap)
    merges: list[Merge] = []
    new = 0
    while new < count and heap:
        often, best = heappop(heap)
        if -often != pairs[best]:
            continue
        if -often < 2:
            break
        name = called[best[0]] + called[best[1]]
        into = named.get(name, first + new)
        new += into == first + new
        named[name], called[into] = into, name
        merges.append(Merge(*best, into))
        changed: set[tuple[int, int]] = set()
        for number in places.pop(best):
            word = spelled[number]
            for pair in pairwise(word):
                pairs[pair] -= times[number]
                places[pair].discard(number)
                changed.add(pair)
            word = spelled[number] = _joined(word, best, into)
            for pair in pairwise(word):
                pairs[pair] += times[number]
                places[pair].add(number)
                changed.add(pair)
        for pair in changed - {best}:
            heappush(heap, (-pairs[pair], pair))
    return merges


def old_pieces(merges: Iterable[Merge], first: int) -> dict[int, Pieces]:
    """Each new token as the old tokens it is made of."""
    made: dict[int, Pieces] = {}
    for merge in merges:
        if merge.into >= first:
            made[merge.into] = (*made.get(merge.left, (merge.left,)), *made.get(merge.right, (merge.right,)))
    return made


def _joined(word: list[int], pair: tuple[int, int], into: int) -> list[int]:
    found: list[int] = []
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            found.append(into)
            place += 2
        else:
            found.append(word[place])
            place += 1
    return found
