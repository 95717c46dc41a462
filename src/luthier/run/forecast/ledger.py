"""What tensors a program holds, counted while it runs: bytes now, and at the moment when they were most.

A tensor counts by its storage, once however many views of it there are, and for as long as anything holds it: as an
allocator would see it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 512
"""Bytes of which torch's allocator gives whole multiples."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes by what they are for."""

    weights: int = 0
    gradients: int = 0
    others: int = 0
    """Activations, and what is computed with."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.others


class Ledger(TorchDispatchMode):
    """Counts what is made while it is on, of tensors with numbers or without.

    Attributes:
        peak: what was held when it was most, since the last `begin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, tuple[int, str]] = {}
        self._now = {"weights": 0, "gradients": 0, "others": 0}
        self._most = 0
        self.peak = Held()

    @property
    def now(self) -> Held:
        """What is held at this moment."""
        return Held(**self._now)

    def enter(self, tensors: Iterable[Tensor], what: str) -> None:
        """Count tensors as weights, gradients or others, whatever they counted as before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata  # pyright: ignore[reportPrivateUsage]
            size, before = self._sizes.get(key, (0, what))
            if key not in self._sizes:
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                weakref.finalize(storage, self._leave, key)
            else:
                self._now[before] -= size
            self._sizes[key] = size, what
            self._now[what] += size
            self._look()

    def begin(self) -> None:
        """Look for the most from now on."""
        self._most, self.peak = 0, Held()
        self._look()

    def _leave(self, key: int) -> None:
        size, what = self._sizes.pop(key)
        self._now[what] -= size

    def _look(self) -> None:
        total = sum(self._now.values())
        if total > self._most:
            self._most, self.peak = total, self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.enter((t for t in made if isinstance(t, Tensor) and self._is_new(t)), "others")
        return result

    def _is_new(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata not in self._sizes  # pyright: ignore[reportPrivateUsage]
