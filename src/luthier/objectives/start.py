"""The model as it was when training began: what an objective may hold on to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.model.load import Model


class Start:
    """The starting values of the weights that move, and the model with them in place.

    They take as much memory as the weights themselves, or half where they lose nothing in the arithmetic's type.

    Args:
        model: a model about to be trained, whose method has been applied.
        bare: leave out what stands before every sequence, so that the model is the one it was put before.

    Attributes:
        weights: the starting values by name.
    """

    def __init__(self, model: Model, *, bare: bool = False):
        self._model, self._bare = model, bare
        self.weights = {name: _narrow(weight.detach(), model.dtype) for name, weight in model.trained().items()}

    @contextmanager
    def in_place(self) -> Generator[None]:
        """The model is as it was at the start: no dropout, no noise, no gradients.  Not to be used inside itself."""
        model, before = self._model, self._model.before
        training = model.network.training
        self._exchange()
        model.eval_mode()
        if self._bare:
            model.before = None
        try:
            with torch.no_grad():
                yield
        finally:
            model.before = before
            model.network.train(training)
            self._exchange()

    def hidden(self, batch: Batch) -> Tensor:
        """hidden_TD that the model gave at the start, without a graph."""
        with self.in_place():
            return self._model.hidden(batch)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """logits_RV that the model gave at the start, without a graph."""
        with self.in_place():
            return self._model.logits(hidden_RD)

    def distance(self, name: str, weight: Tensor) -> Tensor:
        """weight - its start, in float32 and with a graph."""
        return weight - self.weights[name].to(weight.dtype)

    def _exchange(self) -> None:
        """Only pointers change places, so it costs nothing however large the model is."""
        for name, weight in self._model.trained().items():
            weight.data, self.weights[name] = self.weights[name], weight.data


def _narrow(weight: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = weight.to(dtype)
    return narrow if dtype != weight.dtype and torch.equal(narrow.to(weight.dtype), weight) else weight.clone()
