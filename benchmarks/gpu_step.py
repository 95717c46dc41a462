"""Speed of an optimizer step on a GPU: Luthier against a plain transformers loop, on a random model of 0.5B parameters.

    python benchmarks/gpu_step.py [--steps 20] [--methods full lora]

Both sides take the same steps on the same samples, whose lengths spread like real chats: bfloat16 arithmetic, float32
trained weights, fused AdamW, clipping, gradient checkpointing on and off.  The plain loop pads, with SDPA: samples in
the order drawn, or sorted by length within the step, which wastes the fewest tokens.  A rate counts tokens that are
not padding, batches made on the CPU included, after a warm-up.  Losses are printed because speed alone says nothing.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from material import make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from luthier.data.batch import Group, Tokens
from luthier.data.loader import Draw, Share, cut
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh
from luthier.engine.optim import Optimizer
from luthier.engine.step import begin
from luthier.model import methods
from luthier.model.config import Full, Lora, ModelConfig
from luthier.model.load import load_model, load_tokenizer
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

LENGTH, MICRO, PER_STEP, WARM_UP = 2048, 8, 64, 4
RATES = {"full": 1e-5, "lora": 1e-4}
DEVICE = torch.device("cuda", 0)
OPTIM = {"betas": (0.9, 0.95), "eps": 1e-8, "fused": True}


def make_model(folder: Path) -> None:
    """A model of the shape of Qwen2.5-0.5B with random weights, in bfloat16."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )
    with torch.device(DEVICE):
        Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer(["A line is enough: token ids are drawn at random."]).save_pretrained(folder)


def draw_steps(count: int) -> list[list[Group]]:
    """Steps of samples: log-normal lengths with a median of 350 tokens, the second half of each trained."""
    rng = np.random.default_rng(0)
    steps: list[list[Group]] = []
    for _ in range(count):
        groups: list[Group] = []
        for length in np.clip(rng.lognormal(np.log(350), 0.9, PER_STEP), 16, LENGTH).astype(int):
            ids = (rng.zipf(1.2, length) % 150_000).astype(np.int32)
            groups.append(Group((Tokens(ids, (np.arange(length) >= length // 2).astype(np.float32)),)))
        steps.append(groups)
    return steps


def luthier_steps(folder: Path, method: str, recompute: bool, steps: Sequence[list[Group]]) -> Iterator[Tensor | float]:
    """Our steps; gives each one's loss."""
    config = ModelConfig(path=str(folder), dtype="bfloat16")
    model = load_model(config, DEVICE, tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, Lora(rank=8, alpha=16) if method == "lora" else Full())
    model.train_mode("input" if recompute else "most")
    optimizer = Optimizer(model.trained(), OptimConfig(learning_rate=RATES[method], weight_decay=0.0), lambda _: 1.0)
    objective, mesh = Language(Sft(), None), Mesh(DEVICE)  # the renderer is not needed: tokens are given
    for groups in steps:
        optimizer.zero_grad()
        draw = Draw(tuple(range(len(groups))), None)
        batches = [batch.to(DEVICE) for batch in cut(draw, groups, Share(MICRO * LENGTH)).batches]
        result = begin(model, objective, batches, mesh, max_norm=1.0).read()
        optimizer.step(1.0)
        yield result.loss


def plain_steps(
    folder: Path, method: str, recompute: bool, steps: Sequence[list[Group]], *, by_length: bool
) -> Iterator[Tensor | float]:
    """The loop people write with transformers and PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32 if method == "full" else torch.bfloat16, attn_implementation="sdpa"
    ).to(DEVICE)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if method == "lora":
        torch.manual_seed(0)
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATES[method], weight_decay=0.0, **OPTIM)
    for groups in steps:
        optimizer.zero_grad()
        samples = [group.sequences[0] for group in groups]
        if by_length:
            samples.sort(key=len)
        trained = sum(int(sample.weights[1:].sum()) for sample in samples)
        total = torch.zeros((), device=DEVICE)
        for start in range(0, len(samples), MICRO):
            batch = padded(samples[start : start + MICRO])
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**batch, use_cache=False, num_items_in_batch=trained).loss
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        yield total


def padded(samples: Sequence[Tokens]) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels of one micro-batch, padded to its longest sample."""
    shape = len(samples), max(len(sample) for sample in samples)
    ids, mask, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)], mask[row, : len(sample)] = sample.ids, 1
        labels[row, : len(sample)] = np.where(sample.weights != 0, sample.ids, -100)
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array).to(DEVICE, non_blocking=True) for name, array in arrays.items()}


def measure(name: str, make: Callable[[], Iterator[Tensor | float]], steps: Sequence[list[Group]]) -> float:
    """Run every step, time those after the warm-up, and print a row; gives tokens a second."""
    torch.cuda.reset_peak_memory_stats()
    losses: list[float] = []
    start = 0.0
    for number, loss in enumerate(make(), 1):
        losses.append(float(loss))
        if number == WARM_UP:
            torch.cuda.synchronize()
            start = time.perf_counter()
    torch.cuda.synchronize()
    tokens = sum(len(group) for groups in steps[WARM_UP:] for group in groups)
    rate = tokens / (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"  {name:16} {rate:9,.0f} tokens/s  {peak:6.1f} GiB   loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", choices=tuple(RATES), default=list(RATES))
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{torch.cuda.get_device_name(DEVICE)}, {versions}, {options.steps} steps of {PER_STEP} samples", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name), draw_steps(WARM_UP + options.steps)
        make_model(folder)
        for method in options.methods:
            for recompute in (True, False):
                print(f"{method}, gradient checkpointing {'on' if recompute else 'off'}")
                sides = {
                    "plain": lambda m=method, r=recompute: plain_steps(folder, m, r, steps, by_length=False),
                    "plain, sorted": lambda m=method, r=recompute: plain_steps(folder, m, r, steps, by_length=True),
                    "luthier": lambda m=method, r=recompute: luthier_steps(folder, m, r, steps),
                }
                rates: dict[str, float] = {}
                for side, make in sides.items():
                    rates[side] = measure(side, make, steps)
                    gc.collect()
                    torch.cuda.empty_cache()
                best = max(rates["plain"], rates["plain, sorted"])
                print(f"  ratio to the better plain loop: {rates['luthier'] / best:.2f}", flush=True)


if __name__ == "__main__":
    main()
