"""The pieces of a Unigram tokenizer, learned so that the same text gives the same pieces.

The trainer of `tokenizers` goes through words in the order of a hash table that is seeded anew each time, and its sums
of floating-point numbers follow: another vocabulary from every run.  Here everything is counted in whole numbers.  The
first pieces are those of BPE, more than are wanted; then, in rounds, the text is cut in its likeliest way, pieces are
counted there, and those without which it would lose least are left out (Kudo 2018, arXiv:1804.10959, with the likeliest
cutting in place of the expectation over all).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
from tokenizers import Tokenizer, models, trainers

from luthier.base.errors import ConfigError

_SEEDS = 2.0
"""Pieces to begin with, per piece that is wanted."""
_ROUNDS = 1.5, 1.2, 1.0
"""Pieces that each round leaves, per piece that is wanted."""
_LONGEST = 16
"""Characters of a piece at most."""
_UNSEEN = 0.5
"""What a piece that was not used counts."""
_AT_ONCE = 256
"""Texts that are cut at once."""


def unigram_pieces(learner: Tokenizer, texts: Iterable[str], size: int) -> list[tuple[str, float]]:
    """Pieces and their log-probabilities, the likeliest first.  Every character of the text is a piece.

    Args:
        learner: cuts texts into words; its model is replaced.
        texts: gone through once for each round, and twice more.
        size: pieces that are wanted; fewer are found where the text is not enough for them.

    Raises:
        ConfigError: the text has more different characters than that.
    """
    learner.model = models.BPE()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=int(size * _SEEDS), max_token_length=_LONGEST, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    pieces = sorted(learner.get_vocab())
    characters = sum(len(piece) == 1 for piece in pieces)
    if characters > size:
        raise ConfigError(
            f"the text has {characters} different characters, and there is room for {size} pieces",
            where="--vocab_size",
            fix="Give a larger vocabulary, or a text with fewer rare characters",
        )
    for share in _ROUNDS:
        counts = _counted(learner, texts)
        scores = _log_probabilities(pieces, counts)
        lost = {piece: _lost(piece, counts.get(piece, 0), scores) for piece in pieces}
        pieces = sorted(pieces, key=lambda piece: (-lost[piece], piece))[: int(size * share)]
        learner.model = models.Unigram(  # pyright: ignore[reportAttributeAccessIssue]
            [("<unk>", 0.0), *((piece, scores[piece]) for piece in pieces)], unk_id=0
        )
    scores = _log_probabilities(pieces, _counted(learner, texts))
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def _counted(learner: Tokenizer, texts: Iterable[str]) -> dict[str, int]:
    """How often each piece is used."""
    numbers = learner.get_vocab()
    counts_V = np.zeros(max(numbers.values()) + 1, np.int64)
    for part in _parts(iter(texts)):
        for cut in learner.encode_batch_fast(part, add_special_tokens=False):
            counts_V += np.bincount(np.asarray(cut.ids, np.int64), minlength=len(counts_V))
    return {piece: int(counts_V[number]) for piece, number in numbers.items()}


def _parts(texts: Iterator[str]) -> Iterator[list[str]]:
    while part := list(islice(texts, _AT_ONCE)):
        yield part


def _log_probabilities(pieces: list[str], counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.get(piece, 0) for piece in pieces)
    return {piece: math.log(max(counts.get(piece, 0), _UNSEEN) / max(total, 1)) for piece in pieces}


def _lost(piece: str, count: int, scores: Mapping[str, float]) -> float:
    """What the log-likelihood of the text loses without a piece; without bounds for a single character."""
    if len(piece) == 1:
        return math.inf
    return count * (scores[piece] - _in_parts(piece, scores))


def _in_parts(piece: str, scores: Mapping[str, float]) -> float:
    """The log-probability of the likeliest way to cut a piece into others."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(end):
            part = piece[start:end]
            if part in scores and part != piece:
                best[end] = max(best[end], best[start] + scores[part])
    return best[-1]
