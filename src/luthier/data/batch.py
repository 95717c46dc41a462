"""Token sequences, the groups they travel in, and the packed batch a model sees.

Legend: T tokens of all sequences laid end to end, S sequences, R positions with a loss.  Nothing is ever padded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sequence.

    ids: int32 [T].  weights: float32 [T], the loss weight of predicting token t from the tokens before it, so
    weights[0] is always 0.

    What other tasks than predicting the next token need:

    targets: int32 [T], what position t itself is to predict (a tag, the token that was masked); weights[t] is then the
    weight of that.  segments: int8 [T], 0 in the first and 1 in the second text of a pair, for models that ask.
    values: float32 [K], what the sequence as a whole is to be: numbers of classes, a score; K may differ.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    targets: NDArray[np.int32] | None = None
    segments: NDArray[np.int8] | None = None
    values: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, length: int) -> Tokens:
        """The first so many tokens."""
        return self.part(0, length)

    def part(self, start: int, end: int) -> Tokens:
        """The tokens from `start` to before `end`."""
        part = slice(start, end)
        targets = None if self.targets is None else self.targets[part]
        segments = None if self.segments is None else self.segments[part]
        return Tokens(self.ids[part], self.weights[part], targets, segments, self.values)


def whole(
    ids: NDArray[np.int32], values: Sequence[float], weight: float = 1.0, segments: NDArray[np.int8] | None = None
) -> Tokens:
    """A sequence that is judged as a whole; its weight stands at its first token."""
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[:1] = weight
    return Tokens(ids, weights, np.zeros(len(ids), np.int32), segments, np.array(values, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that must travel together: one chat, the two sides of a pair, the samples of one prompt."""

    sequences: tuple[Tokens, ...]
    cut: bool = False
    """Whether the objective left something out so that it fits."""
    bare: int | None = None
    """Where control tokens come only when the group is used: the most tokens of a piece, which may end anywhere."""
    kind: int = 0
    """Which of several tasks it is for; groups of different kinds never share a micro-batch."""

    def scaled(self, factor: float) -> Group:
        """With all weights multiplied."""
        scaled = (replace(tokens, weights=tokens.weights * np.float32(factor)) for tokens in self.sequences)
        return replace(self, sequences=tuple(scaled))

    def __len__(self) -> int:
        """Tokens in all sequences."""
        return sum(len(tokens) for tokens in self.sequences)


@dataclass(frozen=True)
class Batch:
    """Packed sequences on one device.

    Position t holds token t; its target is token t + 1 of the same sequence, unless the sequence brings targets of its
    own.  The last position of a sequence has target 0 and weight 0.
    """

    ids_T: Tensor
    """int64"""
    positions_T: Tensor
    """int64, restarts at 0 with each sequence"""
    targets_T: Tensor
    """int64, the next token, or what else the position is to predict"""
    weights_T: Tensor
    """float32, loss weight of the target"""
    trained_R: Tensor
    """int64, the positions whose weight is not 0; kept so that no step has to ask the device for them"""
    lengths: tuple[int, ...]
    """tokens of each sequence (S of them)"""
    groups: tuple[int, ...]
    """sequences of each group"""
    samples: tuple[int, ...]
    """sample id of each group"""
    segments_T: Tensor | None = None
    """int64, 0 in the first and 1 in the second text of a pair; None when no sequence tells"""
    values_N: Tensor | None = None
    """float32, the values of all sequences one after the other; None when no sequence has any"""
    value_counts: tuple[int, ...] = ()
    """values of each sequence (S of them), where there are any"""
    kind: int = 0
    """which of several tasks all groups are for"""

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        if self.ids_T.device == device:
            return self
        return replace(
            self,
            ids_T=_moved(self.ids_T, device),
            positions_T=_moved(self.positions_T, device),
            targets_T=_moved(self.targets_T, device),
            weights_T=_moved(self.weights_T, device),
            trained_R=_moved(self.trained_R, device),
            segments_T=None if self.segments_T is None else _moved(self.segments_T, device),
            values_N=None if self.values_N is None else _moved(self.values_N, device),
        )

    @property
    def weights_S(self) -> Tensor:
        """float32 [S], the weight of each sequence that is judged as a whole."""
        return self.weights_T[torch.tensor(self.offsets[:-1], dtype=torch.int64, device=self.weights_T.device)]

    @property
    def values_SK(self) -> Tensor:
        """float32 [S, K], the values of each sequence, where all have as many."""
        if self.values_N is None:
            return torch.zeros(len(self.lengths), 0, device=self.ids_T.device)
        return self.values_N.view(len(self.lengths), -1)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each sequence starts, and the end: S + 1 numbers."""
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def tokens(self) -> int:
        """Tokens in the batch (T)."""
        return int(self.ids_T.shape[0])


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """To a device, without waiting for what it is doing: CUDA waits when it copies from memory that is not pinned."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def collate(groups: Sequence[Group], samples: Sequence[int], kind: int = 0) -> Batch:
    """Lay groups of one kind end to end.  No groups give an empty batch, which models and objectives must accept."""
    sequences = [tokens for group in groups for tokens in group.sequences]
    lengths = [len(tokens) for tokens in sequences]
    total = sum(lengths)
    ids = np.zeros(total, dtype=np.int64)
    positions = np.zeros(total, dtype=np.int64)
    targets = np.zeros(total, dtype=np.int64)
    weights = np.zeros(total, dtype=np.float32)
    start = 0
    for tokens, length in zip(sequences, lengths, strict=True):
        end = start + length
        ids[start:end] = tokens.ids
        positions[start:end] = np.arange(length)
        if tokens.targets is None:
            targets[start : end - 1] = tokens.ids[1:]
            weights[start : end - 1] = tokens.weights[1:]
        else:
            targets[start:end] = tokens.targets
            weights[start:end] = tokens.weights
        start = end
    valued = any(tokens.values is not None for tokens in sequences)
    return Batch(
        ids_T=torch.from_numpy(ids),
        positions_T=torch.from_numpy(positions),
        targets_T=torch.from_numpy(targets),
        weights_T=torch.from_numpy(weights),
        trained_R=torch.from_numpy(weights.nonzero()[0]),
        lengths=tuple(lengths),
        groups=tuple(len(group.sequences) for group in groups),
        samples=tuple(samples),
        segments_T=_segments(sequences),
        values_N=torch.from_numpy(np.concatenate([_values(tokens) for tokens in sequences])) if valued else None,
        value_counts=tuple(len(_values(tokens)) for tokens in sequences) if valued else (),
        kind=kind,
    )


def _segments(sequences: Sequence[Tokens]) -> Tensor | None:
    if all(tokens.segments is None for tokens in sequences):
        return None
    parts = [np.zeros(len(tokens), np.int8) if tokens.segments is None else tokens.segments for tokens in sequences]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _values(tokens: Tokens) -> NDArray[np.float32]:
    return _NO_VALUES if tokens.values is None else tokens.values


_NO_VALUES = np.empty(0, dtype=np.float32)
