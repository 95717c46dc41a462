"""Noise on the embeddings while training (NEFTune, Jain et al. 2023).

Legend: T packed tokens, L tokens of one sequence, S sequences, D width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from luthier.model.causal import Batch, Model


class Noise:
    """Adds to each embedding of a sequence a uniform number in +-alpha / sqrt(L D).

    What is added depends on seed, step, sample and place alone: not on what shares its batch, on the number of
    processes, or on where the run was resumed.

    Attributes:
        step: the optimizer step that is being made.
    """

    def __init__(self, model: Model, alpha: float, seed: int):
        self.alpha, self.seed, self.step = alpha, seed, 0
        self._model = model
        self._drawn: tuple[tuple[int, ...], Tensor] | None = None
        embedding: Any = model.base.get_input_embeddings()
        self.width = int(embedding.weight.shape[1])
        embedding.register_forward_hook(self._add)
        model.noise = self

    def draw(self, batch: Batch) -> None:
        """Make the noise of one batch; the next embedding takes it."""
        sequences = [
            (sample, place) for sample, count in zip(batch.samples, batch.groups, strict=True) for place in range(count)
        ]
        pieces = [
            self._of(sample, place, length) for (sample, place), length in zip(sequences, batch.lengths, strict=True)
        ]
        self._drawn = batch.lengths, torch.cat(pieces)

    def _of(self, sample: int, place: int, length: int) -> Tensor:
        """noise_LD of one sequence."""
        device = self._model.device
        mixed = hash((self.seed, self.step, sample, place)) % 2**63
        generator = torch.Generator(device).manual_seed(mixed)
        uniform_LD = torch.rand(length, self.width, generator=generator, device=device) * 2 - 1
        return uniform_LD * (self.alpha / math.sqrt(length * self.width))

    def _add(self, module: Any, inputs: Any, embedded: Tensor) -> Tensor:
        """embedded: [T, D] or [1, T, D] packed, [S, L, D] padded on the right."""
        if self._drawn is None:
            return embedded
        (lengths, noise_TD), self._drawn = self._drawn, None
        if embedded.shape[:-1].numel() == len(noise_TD):
            return embedded + noise_TD.to(embedded.dtype).view_as(embedded)
        noise_SLD = torch.nn.utils.rnn.pad_sequence(list(noise_TD.split(lengths)), batch_first=True)
        return embedded + noise_SLD.to(embedded.dtype)
