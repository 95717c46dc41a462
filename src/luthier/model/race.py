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

LAPS, _PATIENCE = 8, 3
"""Times that each runs before one is chosen; and how often before whoever is hopeless takes no further turn."""

_LONG, _LAPS_IF_LONG, _PATIENCE_IF_LONG = 8.0, 2, 1
"""The same where the fastest takes so many milliseconds: then one time tells more, and costs more."""

_HOPELESS = 1.1
"""Whoever's best time is so many times another's is that."""

_GAIN = 0.975
"""Share of the time of PyTorch's own call below which another kernel is taken.

Whoever does the same work in less time draws more power meanwhile.  Where power sets the clock, all that comes after
pays for it: a kernel that is up to some 3 % faster here makes a step no faster, or slower (docs/performance.md)."""


@dataclass(slots=True)
class Lap:
    """One product, timed on the device."""

    way: int
    tokens: int
    begin: torch.cuda.Event
    end: torch.cuda.Event

    @property
    def milliseconds(self) -> float:
        """How long it took, once the device is through with it."""
        return self.begin.elapsed_time(self.end)


class Race:
    """Kernels that take turns until it is known which is the fastest."""

    def __init__(self) -> None:
        self.ways: list[Kernel | None] = []
        """Who has entered, PyTorch's own call (None) first; nobody yet."""
        self.turn: Kernel | None = None
        """Whose turn it is; in the end, always the fastest's."""
        self.decided = False
        self._running: list[int] = []
        self._round, self._place = 1, 0
        self._laps: list[Lap] = []

    def enter(self, kernels: Sequence[Kernel]) -> None:
        """Begin, with these and PyTorch's own call."""
        self.ways = [None, *kernels]
        self._running = list(range(len(self.ways)))
        self.decided = not kernels

    def start(self, tokens: int) -> Lap | None:
        """Before a product: say whose turn it is, and begin to time it while nothing is decided.

        Whoever gets a lap records its end.
        """
        if self.decided:
            return None
        if self._place == len(self._running):
            self._end_round()
            if self._place:
                return None
        way = self._running[self._place]
        self._place += 1
        self.turn = self.ways[way]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._laps.append(Lap(way, tokens, begin, end))
        begin.record()
        return self._laps[-1]

    def _end_round(self) -> None:
        """Everybody has run once more: decide, begin the next round, or let PyTorch compute until the times are there.

        The device may be far behind; nobody waits for it.
        """
        if self.turn is None and not self._laps[-1].end.query():
            return
        done = [lap for lap in self._laps if lap.end.query()]
        long = bool(done) and min(lap.milliseconds for lap in done) > _LONG
        laps, patience = (_LAPS_IF_LONG, _PATIENCE_IF_LONG) if long else (LAPS, _PATIENCE)
        # For a token, since batches are not of one length.
        times = {way: [lap.milliseconds / lap.tokens for lap in done if lap.way == way] for way in self._running}
        seen = min(map(len, times.values()))
        if seen >= laps:
            middle = {way: median(found) for way, found in times.items()}
            best = min(middle, key=middle.__getitem__)
            self.turn = self.ways[best] if middle[best] < _GAIN * middle[0] else None
            self.decided, self._laps = True, []
            return
        if seen >= patience:
            least = min(min(found) for found in times.values())
            self._running = [way for way in self._running if way == 0 or min(times[way]) <= _HOPELESS * least]
        if self._round < laps:
            self._round, self._place = self._round + 1, 0
        else:
            self.turn, self._place = None, len(self._running)
