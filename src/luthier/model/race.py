"""Which of several kernels with the same results is the fastest: they take turns in the work itself.

Timed on the device, one call each in turn, so that all meet the same heat, the same neighbours and the same clocks.
Nobody waits for the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from luthier.model.cublas import Kernel

LAPS = 8
"""Times that each runs before one is chosen."""

_GAIN = 0.995
"""Share of the time of PyTorch's own call below which another kernel is taken."""


@dataclass(slots=True)
class Lap:
    """One product, timed on the device."""

    way: int
    tokens: int
    begin: torch.cuda.Event
    end: torch.cuda.Event


class Race:
    """Kernels that take turns until it is known which is the fastest."""

    def __init__(self, kernels: Sequence[Kernel]):
        self.ways: list[Kernel | None] = [None, *kernels]
        """None is PyTorch's own call."""
        self.turn: Kernel | None = None
        """Whose turn it is; in the end, always the fastest's."""
        self.decided = not kernels
        self._laps: list[Lap] = []

    def start(self, tokens: int) -> Lap | None:
        """Before a product: say whose turn it is, and begin to time it while nothing is decided.

        Whoever gets a lap records its end.
        """
        if self.decided:
            return None
        if len(self._laps) == LAPS * len(self.ways):
            # The device may be far behind; nobody waits for it.
            self.turn = self._fastest() if self._laps[-1].end.query() else None
            return None
        way = len(self._laps) % len(self.ways)
        self.turn = self.ways[way]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._laps.append(Lap(way, tokens, begin, end))
        begin.record()
        return self._laps[-1]

    def _fastest(self) -> Kernel | None:
        times: dict[int, list[float]] = {}
        for lap in self._laps:
            times.setdefault(lap.way, []).append(lap.begin.elapsed_time(lap.end) / lap.tokens)
        middle = {way: median(found) for way, found in times.items()}
        best = min(middle, key=middle.__getitem__)
        self.decided, self._laps = True, []
        return self.ways[best] if middle[best] < _GAIN * middle[0] else None
