"""What becomes of sequences longer than the model is trained on.  A pure function of ids, weights and a policy.

A token id is never cut in two, so neither is a control token.  No sequence is left without a trained token.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from luthier.data.batch import Group, Tokens
from luthier.data.config import Overlong


@dataclass(frozen=True, slots=True)
class Fitted:
    """The groups made of one group, and what happened to it."""

    groups: tuple[Group, ...]
    dropped: str = ""
    """`overlong` or `no_target_left` when nothing is left, else empty."""
    truncated: bool = False
    stop_lost: bool = False
    """The token that ends the answer was trained before, and is not any more."""


def fit(group: Group, max_length: int, policy: Overlong, stop_ids: Set[int]) -> Fitted:
    """Make a group fit.

    Args:
        max_length: longest sequence in tokens, at least 2.
        policy: truncate keeps the start of every sequence; drop keeps nothing; split makes consecutive groups, and
            drops groups of several sequences, which only mean something together.
    """
    if all(len(tokens) <= max_length for tokens in group.sequences):
        return Fitted((group,))
    if policy == "truncate":
        return _truncate(group, max_length, stop_ids)
    if policy == "split" and len(group.sequences) == 1:
        pieces = tuple(Group((piece,)) for piece in _split(group.sequences[0], max_length) if piece.weights.any())
        return Fitted(pieces, dropped="" if pieces else "no_target_left")
    return Fitted((), dropped="overlong")


def _truncate(group: Group, max_length: int, stop_ids: Set[int]) -> Fitted:
    cut = [Tokens(tokens.ids[:max_length], tokens.weights[:max_length]) for tokens in group.sequences]
    if not all(tokens.weights.any() for tokens in cut):
        return Fitted((), dropped="no_target_left")
    lost = any(
        trains_stop(before, stop_ids) and not trains_stop(after, stop_ids)
        for before, after in zip(group.sequences, cut, strict=True)
    )
    return Fitted((Group(tuple(cut)),), truncated=True, stop_lost=lost)


def _split(tokens: Tokens, max_length: int) -> list[Tokens]:
    """Pieces of at most `max_length` tokens.  Each begins with the last token of the one before, which is context
    there: so every trained token of the whole is trained in exactly one piece."""
    pieces: list[Tokens] = []
    for start in range(0, len(tokens) - 1, max_length - 1):
        weights = tokens.weights[start : start + max_length].copy()
        weights[0] = 0
        pieces.append(Tokens(tokens.ids[start : start + max_length], weights))
    return pieces


def trains_stop(tokens: Tokens, stop_ids: Set[int]) -> bool:
    """Whether the last trained token is one that ends an answer."""
    trained = np.flatnonzero(tokens.weights)
    return bool(len(trained)) and int(tokens.ids[trained[-1]]) in stop_ids
