"""Sequences longer than the model may see: truncated, dropped or split, and never left without a target."""

from __future__ import annotations

from typing import Literal

import numpy as np

from luthier.data.batch import Group, Tokens
from luthier.data.config import Overlong

Outcome = Literal["whole", "truncated", "split", "too_long", "no_target_left"]


def fit(group: Group, max_length: int, policy: Overlong) -> tuple[list[Group], Outcome]:
    """The group as it can be trained: none, one, or several groups, and what was done.

    truncate keeps the beginning of each sequence.  split cuts a single sequence into consecutive pieces that share
    one token, so that every target keeps the token before it; groups of several sequences are truncated instead.
    A token is never cut, so neither is a control token.  A bare group is cut into pieces that share nothing.
    """
    if group.bare is not None:
        max_length = group.bare
    if all(len(tokens) <= max_length for tokens in group.sequences):
        return [group], "truncated" if group.cut else "whole"
    if policy == "drop":
        return [], "too_long"
    if policy == "split" and group.bare is not None:
        starts = range(0, len(group), max_length)
        pieces = [Group((tokens.part(start, start + max_length),)) for tokens in group.sequences for start in starts]
        return pieces, "split"
    if policy == "split" and len(group.sequences) == 1 and group.sequences[0].targets is None:
        pieces = [Group((piece,)) for piece in _pieces(group.sequences[0], max_length) if piece.weights.any()]
        return (pieces, "split") if pieces else ([], "no_target_left")
    cut = tuple(tokens.first(max_length) for tokens in group.sequences)
    if all(short.weights.any() or not tokens.weights.any() for short, tokens in zip(cut, group.sequences, strict=True)):
        return [Group(cut)], "truncated"
    return [], "no_target_left"


def _pieces(tokens: Tokens, max_length: int) -> list[Tokens]:
    pieces: list[Tokens] = []
    for start in range(0, len(tokens) - 1, max_length - 1):
        weights = tokens.weights[start : start + max_length].copy()
        weights[0] = np.float32(0.0)  # trained as the last token of the piece before
        pieces.append(Tokens(tokens.ids[start : start + max_length], weights))
    return pieces
