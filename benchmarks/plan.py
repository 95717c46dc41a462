"""What `luthier plan` foretells of a GPU's memory, beside what the same training then takes.

    python benchmarks/plan.py                       all cases that the devices here allow
    python benchmarks/plan.py --only distill mlm    some

Each case is one set of flags, given to `luthier plan` and to the training; peaks are what the run logs after its last
step, torch's allocations of one process.  Models have random weights: a Qwen2 of 0.5B's shape, its teacher of the same
shape, encoders of BERT-base's, ModernBERT-base's and T5-base's shapes.  Rows are random words, as long
as the training takes them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_speed import SHAPES
from transformers import AutoModelForCausalLM, Qwen2Config

from luthier.model.nano import base

GIB, ROWS, STEPS = 2**30, 512, 4
SYLLABLES = [consonant + vowel for consonant in "bdfklmnprst" for vowel in "aeiou"]
WORDS = [f"{first}{middle}{last}" for first in SYLLABLES for middle in SYLLABLES for last in ("ra", "n", "sel", "to")]
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072},
    "modernbert": {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 22, "intermediate_size": 1152},
    "t5": {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 2048},
}


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    task: str
    length: int
    """in tokens, of the longest rows"""
    samples: int
    """of a micro-batch"""
    flags: tuple[str, ...] = ("--train_type", "full")
    devices: int = 1


LORA = ("--train_type", "lora", "--lora_rank", "16")
CASES = {
    "sft": Case("qwen2", "sft", 1024, 16),
    "sft, evaluated": Case("qwen2", "sft", 1024, 4, (*LORA, "--split_dataset_ratio", "0.2", "--eval_steps", "2",
                                                       "--per_device_eval_batch_size", "32")),
    "sft, average of weights": Case("qwen2", "sft", 1024, 16, ("--train_type", "full", "--ema_decay", "0.99")),
    "distill": Case("qwen2", "distill", 1024, 8, ("--train_type", "full", "--teacher", "{teacher}")),
    "distill, LoRA": Case("qwen2", "distill", 1024, 8, (*LORA, "--teacher", "{teacher}")),
    "seq_cls": Case("qwen2", "seq_cls", 512, 32, LORA),
    "token_cls": Case("qwen2", "token_cls", 512, 32, LORA),
    "embedding": Case("qwen2", "embedding", 256, 16),
    "reranker": Case("qwen2", "reranker", 256, 16, LORA),
    "generative_reranker": Case("qwen2", "generative_reranker", 256, 16, (*LORA, "--positive_token", "Yes")),
    "OFT": Case("qwen2", "sft", 1024, 8, ("--train_type", "oft")),
    "BOFT": Case("qwen2", "sft", 1024, 8, ("--train_type", "boft")),
    "prompt": Case("qwen2", "sft", 1024, 8, ("--train_type", "prompt")),
    "prefix": Case("qwen2", "sft", 1024, 8, ("--train_type", "prefix")),
    "P-tuning": Case("qwen2", "sft", 1024, 8, ("--train_type", "ptuning")),
    "mlm, BERT": Case("bert", "mlm", 512, 32),
    "seq_cls, BERT": Case("bert", "seq_cls", 512, 32),
    "token_cls, ModernBERT": Case("modernbert", "token_cls", 512, 32),
    "embedding, ModernBERT": Case("modernbert", "embedding", 256, 32),
    "span_corruption, T5": Case("t5", "span_corruption", 512, 32),
    "sft, sharded": Case("qwen2", "sft", 1024, 16, ("--train_type", "full", "--fsdp", "full_shard"), devices=2),
    "sft, LoRA, sharded": Case("qwen2", "sft", 1024, 16, (*LORA, "--fsdp", "full_shard"), devices=2),
}  # fmt: skip


def text(random_: random.Random, words: int) -> str:
    return " ".join(random_.choices(WORDS, k=words))


def pairs(random_: random.Random, words: int) -> dict[str, Any]:
    return {"query": text(random_, words), "pos": text(random_, words), "neg": text(random_, words)}


# A word has about two tokens, and rows that are longer than the training allows are cut.
ROW: Mapping[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "sft": lambda r, n: {"query": text(r, 1 + n // 16), "response": text(r, n)},
    "seq_cls": lambda r, n: {"text": text(r, n), "label": r.choice("abcd")},
    "token_cls": lambda r, n: {"tokens": r.choices(WORDS, k=n), "tags": r.choices(["O", "B-X"], k=n)},
    "mlm": lambda r, n: {"text": text(r, n)},
    "embedding": pairs,
}
ROW = {
    **ROW, "distill": ROW["sft"], "span_corruption": ROW["mlm"], "reranker": pairs, "generative_reranker": pairs,
}  # fmt: skip


def rows_of(folder: Path, case: Case) -> Path:
    """Where a task's rows lie."""
    return folder / f"{case.task}-{case.length}.jsonl"


def make_rows(folder: Path, case: Case) -> None:
    """Rows for a task, as long as the training takes them."""
    path, draw = rows_of(folder, case), random.Random(0)
    path.write_text("".join(json.dumps(ROW[case.task](draw, case.length)) + "\n" for _ in range(ROWS)))


def make_model(folder: Path, name: str) -> None:
    """Random weights, and a tokenizer: nano's for Qwen2, one of the words above for encoders."""
    path = folder / name
    if name in ENCODERS:
        corpus = folder / "words.jsonl"
        draw = random.Random(1)
        corpus.write_text("".join(json.dumps({"text": text(draw, 200)}) + "\n" for _ in range(400)))
        sizes = [word for flag, value in ENCODERS[name].items() for word in (f"--{flag}", str(value))]
        sizes += ["--vocab_size", "8192", "--max_position_embeddings", "512"]
        luthier("init", "--architecture", name, "--dataset", str(corpus), "--output_dir", str(path), *sizes)
        return
    torch.manual_seed(name == "teacher")
    config = Qwen2Config(**SHAPES["0.5b"], max_position_embeddings=32768)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    for file in Path(base.__path__[0]).glob("*"):
        if file.name.startswith("tokenizer") or file.name == "chat_template.jinja":
            shutil.copy(file, path)


def luthier(*words: str, devices: int = 1) -> str:
    """What the command prints; its end is shown where it fails."""
    environment = {**os.environ, "NPROC_PER_NODE": str(devices)}
    done = subprocess.run([sys.executable, "-m", "luthier", *words], capture_output=True, text=True, env=environment)
    if done.returncode not in (0, 4):
        raise RuntimeError(f"luthier {' '.join(words[:3])}: {(done.stdout + done.stderr)[-600:]}")
    return done.stdout


def measure(folder: Path, name: str) -> tuple[float, float, str, float]:
    """(foretold GiB, taken GiB, the way of keeping that was foretold, the last loss)"""
    case, output = CASES[name], folder / name.replace(" ", "_").replace(",", "")
    flags = [flag.format(teacher=folder / "teacher") for flag in case.flags]
    words = [
        "--task_type", case.task, "--model", str(folder / case.model), "--dataset", str(rows_of(folder, case)),
        "--max_length", str(case.length), "--per_device_train_batch_size", str(case.samples), "--max_steps", str(STEPS),
        "--gradient_accumulation_steps", "2", "--logging_steps", "1", "--report_to", "none", "--save_strategy", "no",
        "--truncation_strategy", "truncate", "--torch_dtype", "bfloat16", *flags,
    ]  # fmt: skip
    planned = luthier("plan", "sft", *words, "--devices", str(case.devices), "--json", "--cache_dir", f"{output}-plan")
    plan = next(json.loads(line) for line in planned.splitlines() if '"type":"result"' in line)
    demand = next(one for one in plan["demands"] if one["keep"] == plan["chosen"])
    foretold = max(demand["total"], plan["evaluation"] or 0) / GIB
    luthier("sft", *words, "--output_dir", str(output), "--cache_dir", f"{output}-run", devices=case.devices)
    metrics = [json.loads(line) for line in next(output.glob("v*/metrics.jsonl")).read_text().splitlines()]
    steps = [row for row in metrics if "memory_gib" in row]
    return foretold, max(row["memory_gib"] for row in steps), plan["chosen"], steps[-1]["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--together", type=int, default=4, help="cases that run at the same time")
    options = parser.parse_args()
    here = max(1, torch.cuda.device_count())
    names: Sequence[str] = [name for name in options.only if CASES[name].devices <= here]
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(options.together) as pool:
        folder = Path(place)
        needed = {CASES[name].model for name in names} | (
            {"teacher"} if any("distill" in name for name in names) else set()
        )
        list(pool.map(lambda name: make_model(folder, name), sorted(needed)))
        for name in names:  # before any case reads them: some share theirs
            make_rows(folder, CASES[name])
        print("| training | kept | foretold GiB | taken GiB | | loss |\n|---|---|---|---|---|---|", flush=True)
        for name, waiting in [(name, pool.submit(measure, folder, name)) for name in names]:
            try:
                foretold, taken, kept, loss = waiting.result()
            except (RuntimeError, StopIteration) as error:
                print(f"| {name} | {error} |", flush=True)
                continue
            print(
                f"| {name} | {kept} | {foretold:.2f} | {taken:.2f} | {foretold / taken - 1:+.1%} | {loss:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
