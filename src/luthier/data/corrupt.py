"""Damage a sequence so that a model can learn to restore it: masked words, and spans behind sentinels.

Every function draws from the generator that it is given, so its output is a function of that generator's seed.

Legend: T tokens.

Sources: BERT (Devlin et al. 2019) and its whole-word masking as in transformers' DataCollatorForLanguageModeling; T5
(Raffel et al. 2020), `random_spans_noise_mask` of its reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


def mask_words(
    ids_T: Ids,
    words_T: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    mask_id: int,
    vocabulary: int,
    probability: float = 0.15,
    masked: float = 0.8,
    random: float = 0.1,
) -> tuple[Ids, NDArray[np.bool_]]:
    """Hide words: (ids_T as the model sees them, chosen_T: the tokens it is to restore).

    Each word is chosen with `probability`, with all of its tokens.  Of the chosen tokens the share `masked` becomes
    the mask, the share `random` any token of the vocabulary, and the rest stays.

    Args:
        words_T: number of the word each token belongs to, from 0; -1 for tokens that are never chosen.
    """
    if not len(words_T):
        return ids_T, np.zeros(0, dtype=np.bool_)
    drawn = rng.random(int(words_T.max()) + 2) < probability
    chosen_T = drawn[words_T] & (words_T >= 0)
    fate_T = rng.random(len(ids_T))
    others_T = rng.integers(vocabulary, size=len(ids_T), dtype=np.int32)
    seen_T = np.where(chosen_T & (fate_T < masked), np.int32(mask_id), ids_T)
    return np.where(chosen_T & (fate_T >= masked) & (fate_T < masked + random), others_T, seen_T), chosen_T


def noise_spans(
    length: int, rng: np.random.Generator, *, density: float = 0.15, mean_span: float = 3.0
) -> list[tuple[int, int]]:
    """The spans [start, end) of a sequence that T5 hides; none in a sequence of fewer than two tokens.

    round(length x density) tokens in round(that / mean_span) spans, drawn uniformly from all ways to cut noise and
    rest into so many pieces.  The sequence begins with a piece that is kept and ends with one that is hidden.
    """
    if length < 2:
        return []
    noise = min(max(round(length * density), 1), length - 1)
    count = min(max(round(noise / mean_span), 1), length - noise)
    hidden, kept = _pieces(noise, count, rng), _pieces(length - noise, count, rng)
    ends = np.cumsum(np.stack([kept, hidden], axis=1).reshape(-1))
    return [(int(start), int(end)) for start, end in ends.reshape(-1, 2)]


def _pieces(items: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Lengths of `count` pieces that `items` are cut into, each at least 1, all cuts equally likely."""
    cuts = np.sort(rng.choice(items - 1, count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def hide_spans(ids_T: Ids, spans: Sequence[tuple[int, int]], sentinels: Sequence[int], end: int) -> tuple[Ids, Ids]:
    """(source, target) of T5: each span stands as a sentinel in the source, and behind its sentinel in the target.

    Both end with `end`.  Spans beyond the number of sentinels are kept.
    """
    source: list[int] = []
    target: list[int] = []
    position = 0
    for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
        source += [*ids_T[position:start].tolist(), sentinel]
        target += [sentinel, *ids_T[start:stop].tolist()]
        position = stop
    source += [*ids_T[position:].tolist(), end]
    return np.array(source, dtype=np.int32), np.array([*target, end], dtype=np.int32)


def source_length(wanted: int, *, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """(tokens, target): how many tokens become a source of at most `wanted`, and how long their target is.

    Texts are cut into pieces of that many tokens, so that no place in the model's sequence is wasted.
    """

    def sizes(tokens: int) -> tuple[int, int]:
        noise = min(max(round(tokens * density), 1), tokens - 1)
        count = min(max(round(noise / mean_span), 1), tokens - noise)
        return tokens - noise + count + 1, noise + count + 1

    tokens = wanted
    while sizes(tokens + 1)[0] <= wanted:
        tokens += 1
    return tokens, sizes(tokens)[1]
