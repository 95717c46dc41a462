"""Numbers kept while training: metrics as (sum, count), rates, outliers, memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class Means:
    """Metrics as (sum, count) until they are read."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def add(self, values: Mapping[str, tuple[float, float]]) -> None:
        for name, (total, count) in values.items():
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (before[0] + total, before[1] + count)

    def read(self) -> dict[str, float]:
        """The mean of each metric that has been counted."""
        return {name: total / count for name, (total, count) in self.sums.items() if count > 0}


class Outliers:
    """Flags a loss above mean + `sigmas` standard deviations of the last `window` steps."""

    def __init__(self, window: int = 128, sigmas: float = 6.0):
        self.losses: deque[float] = deque(maxlen=window)
        self.sigmas = sigmas

    def flag(self, loss: float) -> bool:
        """Whether `loss` stands out; an outlier does not enter the window it was judged by."""
        if len(self.losses) >= 16:
            mean = math.fsum(self.losses) / len(self.losses)
            deviation = math.sqrt(math.fsum((old - mean) ** 2 for old in self.losses) / len(self.losses))
            if loss > mean + self.sigmas * max(deviation, 1e-3 * abs(mean)):
                return True
        self.losses.append(loss)
        return False


class Clock:
    """Tokens per second since the last reading, and seconds to the end."""

    def __init__(self) -> None:
        self.since = self.until = time.perf_counter()
        self.tokens = self.steps = 0

    def add(self, tokens: int) -> None:
        """A step is done."""
        self.until = time.perf_counter()
        self.tokens += tokens
        self.steps += 1

    def rates(self) -> tuple[float, float]:
        """(tokens per second, seconds per step), up to the end of the last step."""
        elapsed = max(self.until - self.since, 1e-9)
        return self.tokens / elapsed, elapsed / max(1, self.steps)

    def restart(self) -> None:
        """Count anew from the end of the last step."""
        self.since, self.tokens, self.steps = self.until, 0, 0


def peak_memory(device: torch.device) -> float:
    """Most memory held so far, GiB: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        # What `max_memory_allocated` gives, which puts all statistics into one table first.
        held = torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]["peak"]
        return held / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
