"""Matrix products of a 7B layer on one GPU, with and without room for adapters beside the weights.

    python benchmarks/gpu_products.py

Rows that lie further apart (the pitch) and a longer sum (the spare columns that carry adapters) both cost something.
Variants take turns, so that the clock, which a loaded card lowers, is the same for all; medians of six rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEVICE, TYPE = torch.device("cuda", 0), torch.bfloat16
TOKENS, NARROW, WIDE = 16384, 3584, 37888
ROUNDS, AT_ONCE = 7, 5


def rows(count: int, columns: int, pitch: int, scale: float = 1.0) -> Tensor:
    """Random numbers in rows that lie `pitch` apart."""
    return (torch.randn(count, pitch, device=DEVICE, dtype=TYPE) * scale)[:, :columns]


def variants() -> dict[str, Callable[[], Tensor]]:
    """gate and up of a layer, forward and backward, by how their weight lies."""
    found: dict[str, Callable[[], Tensor]] = {}
    dy_TO = rows(TOKENS, WIDE + 32, WIDE + 64)
    for spare in (0, 32, 64, 128, 256, 512):
        weight = rows(WIDE + 32, NARROW, NARROW + spare, 0.02)
        found[f"backward, pitch + {spare}"] = lambda weight=weight: dy_TO @ weight
        if spare:
            x_TI = rows(TOKENS, NARROW + 32, NARROW + spare)
            wide = weight.as_strided((WIDE, NARROW + 32), weight.stride())
            found[f"forward, pitch + {spare}"] = lambda x=x_TI, wide=wide: x @ wide.t()
    plain = rows(WIDE, NARROW, NARROW, 0.02)
    x_TI = rows(TOKENS, NARROW, NARROW)
    found["forward, no adapter"] = lambda: x_TI @ plain.t()
    return found


def main() -> None:
    made = variants()
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(ROUNDS):
        for name, product in made.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(AT_ONCE):
                product()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / AT_ONCE)
    for name, seen in times.items():
        median = sorted(seen[1:])[len(seen) // 2 - 1]
        print(f"{name:28} {median:7.3f} ms  {2 * TOKENS * NARROW * WIDE / median / 1e9:5.0f} TFLOP/s")


if __name__ == "__main__":
    main()
