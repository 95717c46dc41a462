"""Which of cuBLAS's kernels makes a training step faster, where power sets the clock.

    python benchmarks/gpu_kernels.py --work A

In turns, all kernels of a product meet the same clock.  Held, one settles at the clock that its power leaves it.
Printed are both times of each product's kernels (0 is PyTorch's), then the steps themselves with kernels chosen in four
ways, which take turns on one warm card: PyTorch's; the fastest in the steps; that one where it gains enough
(`model.race`); and the fastest while it is held.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from gpu_speed import MODES, WORKS, Loop
from torch import Tensor

from luthier.data.batch import Batch
from luthier.engine.mesh import open_mesh
from luthier.model import blas, race
from luthier.model.cublas import Call, Form, Kernel

RACE, ROUNDS, SETTLE, TIMED = 30, 3, 2, 8
"""Steps until all is decided; rounds of turns, and of each turn the steps that do not count and those that do."""

HELD, GOOD = 0.35, 1.08
"""Seconds that a kernel is held, and how many times the best's time in the steps makes it worth that."""

Choice = Mapping[Form, Kernel | None]


class Remembering(race.Race):
    """A race that keeps what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, float] = {}

    def _end_round(self) -> None:
        laps = list(self._laps)
        super()._end_round()
        if self.decided:
            done = [lap for lap in laps if lap.end.query()]
            ways = {lap.way for lap in done}
            self.seen = {way: median(lap.milliseconds for lap in done if lap.way == way) for way in ways}


def milliseconds(run: Callable[[], Any], seconds: float) -> float:
    """One of many calls in a row, over the second half of so many seconds."""
    count, first, each = 2, 0, 0.0
    for _ in range(2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for number in range(count):
            if number == first:
                start.record()
            run()
        end.record()
        end.synchronize()
        each = start.elapsed_time(end) / (count - first)
        count = max(4, int(seconds * 1e3 / each))
        first = count // 2
    return each


def factor(rows: int, columns: int, strides: tuple[int, ...], kind: torch.dtype, scale: float) -> Tensor:
    """Random numbers that lie as a product's factor does."""
    down, across = strides
    if across == 1:
        return (torch.randn(rows, down, device="cuda", dtype=kind) * scale)[:, :columns]
    return (torch.randn(columns, across, device="cuda", dtype=kind) * scale)[:, :rows].t()


def held(call: Call, ways: Mapping[int, Kernel | None]) -> dict[int, float]:
    """Milliseconds of each kernel while it is held."""
    form = call.form
    left_MK = factor(form.m, form.k, form.left, form.kind, 1.0)
    right_KN = factor(form.k, form.n, form.right, form.kind, 0.02)
    out_MN = torch.zeros(form.m, form.out, device="cuda", dtype=form.out_kind)[:, : form.n]
    bias_N = torch.zeros(form.n, device="cuda", dtype=form.kind) if form.biased else None

    def runner(kernel: Kernel | None) -> Callable[[], Any]:
        if kernel is None:
            return lambda: blas._by_torch(left_MK, right_KN, out_MN, bias_N, adds=form.adds)  # pyright: ignore[reportPrivateUsage]
        return lambda: call.run(kernel, left_MK, right_KN, out_MN, bias_N)

    milliseconds(runner(None), HELD)
    return {way: milliseconds(runner(kernel), HELD) for way, kernel in ways.items()}


def choices(entries: Mapping[Form, tuple[Remembering, Call]]) -> dict[str, Choice]:
    """Kernels by product, chosen in four ways; what they rest on is printed."""
    fastest, gaining, holding = dict[Form, Kernel | None](), dict[Form, Kernel | None](), dict[Form, Kernel | None]()
    for form, (seen, call) in entries.items():
        times = seen.seen
        best = min(times, key=times.__getitem__)
        good = [way for way, took in times.items() if took <= GOOD * times[best] or way == 0]
        alone = held(call, {way: seen.ways[way] for way in good})
        fastest[form], gaining[form] = seen.ways[best], seen.turn
        holding[form] = seen.ways[min(alone, key=alone.__getitem__)]
        told = ", ".join(f"{way}: {times[way]:.3f} {alone[way]:.3f}" for way in sorted(good, key=times.__getitem__))
        print(f"{form.m:6} x {form.n:6} x {form.k:6}{' added' if form.adds else ''}: {told}", flush=True)
    return {"PyTorch's": {}, "fastest in the steps": fastest, "where it gains enough": gaining, "held": holding}


def seconds(loop: Loop, steps: list[list[Batch]]) -> list[float]:
    """From the numbers of one step to those of the next."""
    moments: list[float] = []
    for step in steps:
        loop.train(step)
        moments.append(time.perf_counter())
    return [after - before for before, after in pairwise(moments)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, default="A")
    work = WORKS[parser.parse_args().work]
    blas.Race = Remembering
    with open_mesh("cuda") as mesh:
        loop = Loop(work, MODES["fast"], mesh)
        ready = loop.steps(RACE)
        seconds(loop, ready)
        entries = blas._entries  # pyright: ignore[reportPrivateUsage]
        found: Any = {form: entry for form, entry in entries.items() if entry and len(entry[0].ways) > 1}
        decided = {form: entry for form, entry in found.items() if entry[0].decided}
        print(f"{len(decided)} of {len(found)} products are decided; milliseconds in the steps, and held")
        made = choices(decided)
        gc.collect()
        torch.cuda.empty_cache()
        times: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, choice in made.items():
                for form, (running, _) in found.items():
                    running.decided, running.turn = True, choice.get(form)
                times.setdefault(name, []).extend(seconds(loop, ready[: SETTLE + TIMED])[SETTLE - 1 :])
        for name, took in times.items():
            print(
                f"{name:22} {sum(work.lengths) / median(took):9,.0f} tokens/s  {median(took) * 1e3:7.1f} ms", flush=True
            )


if __name__ == "__main__":
    main()
