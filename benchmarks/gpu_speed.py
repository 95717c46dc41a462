"""The fastest step on one GPU: Luthier's own modes side by side, on models with random weights made on the device.

    python benchmarks/gpu_speed.py --work A --modes fast lean            LoRA r16 on Qwen2.5-7B's shape, 4 x 4,096
    python benchmarks/gpu_speed.py --work B --modes fast lean            full tuning of Qwen2.5-0.5B's shape, 16 x 2,048
    python benchmarks/gpu_speed.py --work C --modes fast                 A on chats of mixed length, packed
    torchrun --nproc_per_node 2 benchmarks/gpu_speed.py --work A         as many tokens again on a second GPU

Random weights and tokens say nothing about learning; the loss is printed to show that all modes compute the same.  The
share is that of the step's operations in what one product alone would reach in the same time.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from ceiling import ceiling, operations
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.data.pack import micro_batches
from luthier.data.render import Renderer
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh, open_mesh
from luthier.engine.optim import Optimizer
from luthier.engine.step import StepResult, begin
from luthier.model import attention, lowbit, methods
from luthier.model.calling import Calling
from luthier.model.causal import Model
from luthier.model.config import Full, Lora, Method, ModelConfig, Quant
from luthier.model.layer import Keep
from luthier.model.pointwise import Plain, Pointwise
from luthier.objectives.config import Pretrain
from luthier.objectives.language import Language

WARM_UP = 12
"""Steps in which the kernels of most products have taken their turns."""

PROFILED = 4
"""Steps of a profile, one after the other as in a run."""

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Work:
    """One workload: a shape, what moves, and the lengths of one step's sequences."""

    shape: str
    method: Method
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Mode:
    """How a workload is run."""

    keep: Keep | None = "all"
    """None: transformers' own layers, without recomputation"""
    fused: bool = True
    micro_tokens: int = 16384
    optimizer: str = "adamw"
    quant: str | None = None


def mixed_lengths(total: int) -> tuple[int, ...]:
    """Log-normal chat lengths that fill `total` tokens."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < total:
        prompt, answer = rng.lognormal(5.0, 0.8) + 16, rng.lognormal(6.2, 0.8)
        lengths.append(int(min(prompt, 1365) + min(answer + 16, 2048)) + 12)
    lengths[-1] -= sum(lengths) - total
    return tuple(length for length in lengths if length > 1)


WORKS = {
    "A": Work("7b", Lora(rank=16, alpha=32), (4096,) * 4),
    "B": Work("0.5b", Full(), (2048,) * 16),
    "C": Work("7b", Lora(rank=16, alpha=32), mixed_lengths(16384)),
}
MODES = {
    "fast": Mode(micro_tokens=32768),
    "eager": Mode(micro_tokens=32768, fused=False),
    "most": Mode("most", micro_tokens=32768),
    "some": Mode("some", micro_tokens=32768),
    "lean": Mode("input", micro_tokens=4096),
    "lean8": Mode("input", micro_tokens=8192),
    "lean8bit": Mode("input", micro_tokens=16384, optimizer="adamw_8bit"),
    "fp8": Mode(micro_tokens=32768, quant="fp8"),
    "fp8lean": Mode("input", micro_tokens=8192, quant="fp8"),
    "fp8lean4": Mode("input", micro_tokens=4096, quant="fp8"),
    "plain": Mode(None, fused=False, micro_tokens=32768),
}


def make_model(shape: str, method: Method, quant: str | None, device: torch.device) -> Model:
    """A random model on the device, in the arithmetic's type, with its method applied."""
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=32768)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float32)
    network.requires_grad_(False)
    network.set_attn_implementation(attention.NAME)
    if quant:
        lowbit.quantize(network, Quant.model_validate({"method": quant}), device, torch.bfloat16)
    model = Model(
        network,
        PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast),
        device=device,
        dtype=torch.bfloat16,
        max_length=32768,
        config=ModelConfig(path="random"),
        calling=Calling(packed=True),
        note=None,
    )
    torch.manual_seed(0)
    methods.apply(model, method)
    return model


def pointwise(*, fused: bool) -> Pointwise:
    """The kernels, or their plain forms."""
    if not fused:
        return Plain()
    from luthier.model.kernels import Fused

    return Fused()


def make_step(lengths: Sequence[int], capacity: int, vocabulary: int, seed: int) -> list[Batch]:
    """One step's micro-batches of random tokens, every one of them trained, on the host."""
    rng = np.random.default_rng(seed)
    groups = [
        Group((Tokens(rng.integers(0, vocabulary, length, dtype=np.int32), np.ones(length, np.float32)),))
        for length in lengths
    ]
    bins = micro_batches(lengths, capacity, 1)
    return [collate([groups[index] for index in members], members) for members in bins]


class Loop:
    """A model, its optimizer and one step after the other, as the trainer makes them."""

    def __init__(self, work: Work, mode: Mode, mesh: Mesh):
        self.work, self.mode, self.mesh = work, mode, mesh
        self.model = make_model(work.shape, work.method, mode.quant, mesh.device)
        self.objective = Language(Pretrain(), Renderer.__new__(Renderer))
        if mode.keep is not None:
            reason = self.model.by_hand(pointwise(fused=mode.fused))
            assert reason is None, reason
        self.model.train_mode(mode.keep or "all")
        config = OptimConfig.model_validate({"learning_rate": 1e-4, "name": mode.optimizer})
        self.optimizer = Optimizer(self.model.trained(), config, lambda _: 1.0, tied=self.model.tied)

    def steps(self, count: int) -> list[list[Batch]]:
        """Steps of random tokens, ready on the host as a run's loader has them."""
        seeds = [number * self.mesh.world + self.mesh.rank for number in range(count)]
        return [make_step(self.work.lengths, self.mode.micro_tokens, self.model.vocabulary, seed) for seed in seeds]

    def train(self, step: Sequence[Batch]) -> StepResult:
        """One step, until its numbers are there; the device may still move the weights."""
        self.optimizer.zero_grad()
        batches = [batch.to(self.mesh.device) for batch in step]
        pending = begin(self.model, self.objective, batches, self.mesh, max_norm=1.0)
        ahead = self.optimizer.can_hold_still
        if ahead:
            self.optimizer.step(1.0, unless=pending.unsound)
        result = pending.read()
        if not ahead:
            self.optimizer.step(1.0)
        return result

    def gradients(self, batches: Sequence[Batch]) -> StepResult:
        """Forward and backward alone."""
        return begin(self.model, self.objective, batches, self.mesh, max_norm=1.0).read()


def measure(name: str, work: Work, mode: Mode, steps: int, profile: bool, host: bool, mesh: Mesh, most: float) -> None:
    """Train a few steps and print one line.  A step lasts from the numbers of one to those of the next.

    Args:
        most: operations a second of the fastest product, of which the line tells the share.
    """
    started = time.perf_counter()
    loop = Loop(work, mode, mesh)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    results, moments = list[StepResult](), list[float]()
    ready = loop.steps(WARM_UP + steps)
    for step in ready:
        results.append(loop.train(step))
        moments.append(time.perf_counter())
    torch.cuda.synchronize()
    seconds = [after - before for before, after in pairwise(moments)]
    median = sorted(seconds[WARM_UP - 1 :])[steps // 2]
    peak = torch.cuda.max_memory_allocated() / 2**30
    losses = " ".join(f"{result.loss:.4f}" for result in (results[0], results[-1]))
    norms = " ".join(f"{result.grad_norm:.4f}" for result in (results[0], results[-1]))
    if not mesh.leads:
        return
    share = operations(SHAPES[work.shape], full=isinstance(work.method, Full), lengths=work.lengths) / median / most
    rate = f"{mesh.world * sum(work.lengths) / median:9,.0f} tokens/s  {median * 1e3:7.1f} ms  {share:4.0%}"
    warm = moments[0] - started
    print(
        f"{name:10} {rate}  {peak:6.2f} GiB  loss {losses}  norm {norms}  first step after {warm:.1f} s",
        flush=True,
    )
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            for step in ready[:PROFILED]:
                loop.train(step)
            torch.cuda.synchronize()
        table(seen)
    if host:
        host_time(loop)


def host_time(loop: Loop, rounds: int = 10) -> None:
    """What a micro-batch costs the host, however few tokens it has: it bounds steps of small micro-batches."""
    small = make_step((64, 64), 128, loop.model.vocabulary, 0)
    batches = [batch.to(loop.mesh.device) for batch in small]
    loop.gradients(batches)
    started = time.perf_counter()
    for _ in range(rounds):
        loop.gradients(batches)
    print(f"    a micro-batch of 128 tokens: {(time.perf_counter() - started) / rounds * 1e3:.1f} ms")
    with cProfile.Profile() as seen:
        for _ in range(rounds):
            loop.gradients(batches)
    pstats.Stats(seen).sort_stats("tottime").print_stats(30)


def table(seen: torch.profiler.profile, rows: int = 48) -> None:
    """Device time of a step by kernel."""
    kernels: dict[str, list[float]] = {}
    for event in on_device(seen):
        kernels.setdefault(event.name, []).append(event.device_time)
    total = sum(sum(times) for times in kernels.values())
    print(f"    device busy {total / PROFILED / 1e3:.1f} ms a step; {gaps(seen)}")
    for kernel, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:rows]:
        print(f"    {sum(times) / PROFILED / 1e3:8.2f} ms {len(times) / PROFILED:7.2f}x  {kernel[:110]}")


def on_device(seen: torch.profiler.profile) -> list[Any]:
    """What ran on the device, without the host's own annotations of it."""
    kind = torch.autograd.DeviceType.CUDA
    return [event for event in seen.events() or () if event.device_type == kind and "Optimizer.step" not in event.name]


def gaps(seen: torch.profiler.profile) -> str:
    """How long the device stood still between its first and last kernel, and the longest such times."""
    spans = sorted((event.time_range.start, event.time_range.end, event.name) for event in on_device(seen))
    found: list[tuple[float, str]] = []
    end, last = spans[0][1], spans[0][2]
    for start, stop, name in spans[1:]:
        if start > end:
            found.append((start - end, f"{last[:48]} -> {name[:48]}"))
        if stop > end:
            end, last = stop, name
    longest = "".join(f"\n        {gap:.0f} us {where}" for gap, where in sorted(found, reverse=True)[:24])
    idle = sum(gap for gap, _ in found)
    whole = (end - spans[0][0]) / 1e3
    return f"{idle / 1e3:.1f} ms idle of {whole:.1f} in {len(found)} gaps of {PROFILED} steps; the longest:{longest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, default="A")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["fast"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--micro", type=int, help="tokens of a micro-batch, instead of the mode's own")
    parser.add_argument("--profile", action="store_true", help="device time by kernel, and gaps between kernels")
    parser.add_argument("--host", action="store_true", help="what a micro-batch costs the host, by function")
    options = parser.parse_args()
    with open_mesh("cuda") as mesh:
        most = ceiling()
        if mesh.leads:
            print(f"a bfloat16 product alone: {most / 1e12:.0f} TFLOP/s; shares are of that")
        for name in options.modes:
            mode = replace(MODES[name], micro_tokens=options.micro) if options.micro else MODES[name]
            try:
                measure(name, WORKS[options.work], mode, options.steps, options.profile, options.host, mesh, most)
            except torch.OutOfMemoryError as error:
                print(f"{name:10} out of memory: {str(error)[:120]}", flush=True)
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
