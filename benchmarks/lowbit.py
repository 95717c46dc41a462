"""What a base in few bits and an optimizer with small state save on one GPU, and what they cost.

    python benchmarks/lowbit.py --work qlora-7b qlora-0.5b      how the frozen base is held, under LoRA
    python benchmarks/lowbit.py --work full-0.5b                which optimizer, in full tuning

Models have the shapes of Qwen2.5, random weights made on the device, bfloat16 arithmetic, every layer recomputed in the
backward pass.  Random tokens say nothing about learning: losses are printed to show that all compute nearly the same.
Peaks are torch's allocations from the first step on; `weights` is what is held before it.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.data.render import Renderer
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh
from luthier.engine.optim import Optimizer
from luthier.engine.step import begin
from luthier.model import attention, lowbit, methods
from luthier.model.calling import Calling
from luthier.model.causal import Model
from luthier.model.config import Full, Lora, Method, ModelConfig, Quant
from luthier.model.kernels import Fused
from luthier.objectives.config import Pretrain
from luthier.objectives.language import Language

DEVICE = torch.device("cuda", 0)
GIB, WARM_UP = 2**30, 2
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
BASES = {
    "bfloat16": Quant(),
    "bnb 8": Quant(bits=8),
    "bnb nf4": Quant(bits=4),
    "bnb fp4": Quant(bits=4, format="fp4"),
    "hqq 8": Quant(method="hqq", bits=8),
    "hqq 4": Quant(method="hqq", bits=4),
    "hqq 3": Quant(method="hqq", bits=3),
    "hqq 2": Quant(method="hqq", bits=2, group_size=16),
}
"""Ways to hold the base."""


@dataclass(frozen=True)
class Work:
    """One workload: a shape, what moves, the sequences of a step, and those of a micro-batch."""

    shape: str
    method: Method
    sequences: int
    length: int
    together: int


WORKS = {
    "qlora-7b": Work("7b", Lora(rank=16, alpha=32), 4, 4096, 2),
    "qlora-0.5b": Work("0.5b", Lora(rank=16, alpha=32), 16, 2048, 8),
    "full-0.5b": Work("0.5b", Full(), 16, 2048, 8),
}


def make_model(work: Work, quant: Quant) -> Model:
    """A random model on the device, held as asked, with its method applied."""
    config = Qwen2Config(**SHAPES[work.shape], max_position_embeddings=32768, name_or_path="random")
    torch.manual_seed(0)
    with DEVICE:
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.requires_grad_(False)
    if quant.on:
        lowbit.quantize(network, quant, DEVICE, torch.bfloat16)
    network.set_attn_implementation(attention.NAME)
    model = Model(
        network,
        PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast),
        device=DEVICE,
        dtype=torch.bfloat16,
        max_length=32768,
        config=ModelConfig(path="random", quant=quant),
        calling=Calling(packed=True),
        note=None,
    )
    torch.manual_seed(0)
    methods.apply(model, work.method)
    reason = model.by_hand(Fused())
    if reason:
        print(f"transformers runs the layers: {reason}")
    model.train_mode("input")
    return model


def make_step(work: Work, vocabulary: int, seed: int) -> Iterator[Batch]:
    """One step's micro-batches of random tokens, every one of them trained."""
    rng = np.random.default_rng(seed)
    for _ in range(0, work.sequences, work.together):
        ids = rng.integers(0, vocabulary, (work.together, work.length)).astype(np.int32)
        groups = [Group((Tokens(row, np.ones(work.length, np.float32)),)) for row in ids]
        yield collate(groups, range(work.together)).to(DEVICE)


def measure(work: Work, quant: Quant, optimizer_name: str, steps: int) -> dict[str, float]:
    """Train a few steps; gives speed, memory and losses."""
    started = time.perf_counter()
    model = make_model(work, quant)
    torch.cuda.synchronize()
    made = time.perf_counter() - started
    objective, mesh = Language(Pretrain(), cast(Renderer, None)), Mesh(DEVICE)
    config = OptimConfig.model_validate({"learning_rate": 1e-4, "name": optimizer_name})
    optimizer = Optimizer(model.trained(), config, lambda _: 1.0, tied=model.tied)
    free()
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    losses: list[float] = []
    start = 0.0
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            torch.cuda.synchronize()
            start = time.perf_counter()
        optimizer.zero_grad()
        batches = list(make_step(work, model.vocabulary, number))
        losses.append(begin(model, objective, batches, mesh, max_norm=1.0).read().loss)
        optimizer.step(1.0)
    torch.cuda.synchronize()
    took = time.perf_counter() - start
    return {
        "tokens_per_second": steps * work.sequences * work.length / took,
        "weights_gib": weights / GIB,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds_to_make": made,
    }


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "adamw_8bit", "lion_8bit"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}, {options.steps} steps after {WARM_UP}")
    found: list[dict[str, Any]] = []
    for name in options.work:
        work = WORKS[name]
        print(f"\n{name}: {work.sequences} x {work.length:,} tokens a step\n")
        print("| base | optimizer | weights GiB | peak GiB | tokens/s | loss |\n|---|---|---|---|---|---|")
        trains_all = isinstance(work.method, Full)
        for base in ["bfloat16"] if trains_all else options.bases:
            for optimizer in options.optimizers if trains_all else ["adamw"]:
                free()
                try:
                    row = measure(work, BASES[base], optimizer, options.steps)
                except torch.OutOfMemoryError:
                    print(f"| {base} | {optimizer} | does not fit | | | |", flush=True)
                    continue
                found.append({"work": name, "base": base, "optimizer": optimizer, **row})
                print(
                    f"| {base} | {optimizer} | {row['weights_gib']:.2f} | {row['peak_gib']:.2f} | "
                    f"{row['tokens_per_second']:,.0f} | {row['first_loss']:.3f} -> {row['last_loss']:.3f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
