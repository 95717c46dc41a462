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
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that must travel together: one chat, the two sides of a pair, the samples of one prompt."""

    sequences: tuple[Tokens, ...]

    def __len__(self) -> int:
        """Tokens in all sequences."""
        return sum(len(tokens) for tokens in self.sequences)


@dataclass(frozen=True)
class Batch:
    """Packed sequences on one device.

    Position t holds token t; its target is token t + 1 of the same sequence.  The last position of a sequence has
    target 0 and weight 0.
    """

    ids_T: Tensor
    """int64"""
    positions_T: Tensor
    """int64, restarts at 0 with each sequence"""
    targets_T: Tensor
    """int64, the next token"""
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

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        if self.ids_T.device == device:
            return self
        return replace(
            self,
            ids_T=self.ids_T.to(device, non_blocking=True),
            positions_T=self.positions_T.to(device, non_blocking=True),
            targets_T=self.targets_T.to(device, non_blocking=True),
            weights_T=self.weights_T.to(device, non_blocking=True),
            trained_R=self.trained_R.to(device, non_blocking=True),
        )

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each sequence starts, and the end: S + 1 numbers."""
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def tokens(self) -> int:
        """Tokens in the batch (T)."""
        return int(self.ids_T.shape[0])


def collate(groups: Sequence[Group], samples: Sequence[int]) -> Batch:
    """Lay groups end to end.  No groups give an empty batch, which models and objectives must accept."""
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
        targets[start : end - 1] = tokens.ids[1:]
        weights[start : end - 1] = tokens.weights[1:]
        start = end
    return Batch(
        ids_T=torch.from_numpy(ids),
        positions_T=torch.from_numpy(positions),
        targets_T=torch.from_numpy(targets),
        weights_T=torch.from_numpy(weights),
        trained_R=torch.from_numpy(weights.nonzero()[0]),
        lengths=tuple(lengths),
        groups=tuple(len(group.sequences) for group in groups),
        samples=tuple(samples),
    )
