"""Luthier beside its peers on one GPU: same rows, same clock, one call.

    python benchmarks/gpu_peers.py PEERS --work A --peers lf us_gc --modes kept lean fp8
    python benchmarks/gpu_peers.py PEERS --work C --peers trl swift lf --modes kept fp8

PEERS is a folder with the peers' launchers: `run_peers.sh SIZE LENGTH ROWS STEPS peer...`, which prints a line
`BENCH {...}` for each; `bench_wrap.py`, the clock that does so for any Python program; `mkmodel.py` and `mkfixed.py`,
which make the random model and the rows.  Each side is a process of its own; Luthier's is the command a user types.
ms-swift packs in a process of its own that begins by importing the main program: it waits for ever where
`bench_wrap.py` does not keep what it starts under `if __name__ == "__main__"`.

C is A on chats of mixed length (`mkdata.py`), packed by every side into rows of the full length.  Its rate counts the
tokens of the chats alone: how full the packs are is computed once, by Luthier's packer, since all sides pack best-fit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceiling import operations

REPO = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Work:
    """One workload, in the launchers' words."""

    size: str
    length: int
    rows: int
    """of a step"""
    rank: int
    """of the adapters; 0 tunes everything"""
    packed: bool = False


WORKS = {
    "A": Work("7b", 4096, 4, 16),
    "B": Work("0.5b", 2048, 16, 0),
    "C": Work("7b", 4096, 4, 16, packed=True),
    "tiny": Work("tiny", 128, 4, 16),
    "tiny packed": Work("tiny", 512, 4, 16, packed=True),
}

# What each mode adds to the command: how many rows go through at once, and what is kept.
MODES: dict[str, tuple[int, tuple[str, ...]]] = {
    "kept": (1, ("--gradient_checkpointing", "false")),
    "lean": (4, ("--gradient_checkpointing", "true")),
    "lean 8-bit": (2, ("--gradient_checkpointing", "true", "--optim", "adamw_8bit")),
    "fp8": (1, ("--gradient_checkpointing", "false", "--quant_method", "fp8")),
    "fp8 lean": (2, ("--gradient_checkpointing", "true", "--quant_method", "fp8")),
    "auto": (1, ()),
}


def luthier(folder: Path, place: Path, work: Work, mode: str, steps: int, tokens: int) -> list[dict[str, Any]]:
    """One mode of ours, through the command."""
    parts, flags = MODES[mode]
    rows = work.rows // parts
    method = ["--train_type", "full"]
    if work.rank:
        method = ["--train_type", "lora", "--lora_rank", str(work.rank), "--lora_alpha", str(2 * work.rank)]
    command = [
        sys.executable, "bench_wrap.py", "luthier", "sft", "--model", str(place / f"m_{work.size}"),
        "--dataset", str(place / "ds" / "fix.jsonl"), *method, "--max_length", str(work.length), "--loss_scale", "all",
        "--per_device_train_batch_size", str(rows), "--gradient_accumulation_steps", str(parts),
        "--max_steps", str(steps), "--learning_rate", "1e-4", "--lr_scheduler_type", "constant", "--logging_steps", "1",
        "--save_strategy", "no", "--report_to", "none", "--output_dir", str(place / "luthier"),
        "--packing", str(work.packed).lower(), *flags,
    ]  # fmt: skip
    path = os.pathsep.join([str(REPO / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"BENCH_TOK": str(tokens), "BENCH_NAME": f"luthier, {mode}", "PYTHONPATH": path}
    return run(command, folder, settings)


def peers(folder: Path, place: Path, work: Work, names: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """Any number of peers, by the launcher."""
    command = ["bash", "run_peers.sh", work.size, str(work.length), str(work.rows), str(steps), *names]
    return run(command, folder, {"LORA": str(work.rank), "W": str(place)})


def packed_peers(
    folder: Path, place: Path, work: Work, names: Sequence[str], steps: int, tokens: int
) -> list[dict[str, Any]]:
    """TRL, ms-swift and LLaMA-Factory with their own packing, FlashAttention and Liger kernels, in bfloat16."""
    run(
        ["bash", "run_peers.sh", work.size, str(work.length), str(work.rows), "1"],
        folder,
        {"W": str(place)},
        quiet=True,
    )
    model, rows, sites = str(place / f"m_{work.size}"), str(place / "ds" / "fix.jsonl"), place / "s"
    chats(folder, place, work, steps)  # the launcher has put its own rows there
    attention = os.environ.get("ATTN", "flash_attention_2")
    trl = {
        "model": model, "data": rows, "attn": attention, "lora": work.rank, "bs": work.rows, "ga": 1,
        "len": work.length, "steps": steps, "gc": False, "packing": True, "liger": "LIGER" not in os.environ,
    }  # fmt: skip
    changed = {
        "@W@/m7": model, "@W@": str(place), "cutoff_len: 4096": f"cutoff_len: {work.length}",
        "max_steps: 12": f"max_steps: {steps}", "neat_packing: false": "neat_packing: true",
        "\npacking: false": "\npacking: true",
        # It packs one row at a time only.
        "per_device_train_batch_size: 4": "per_device_train_batch_size: 1",
        "gradient_accumulation_steps: 1": f"gradient_accumulation_steps: {work.rows}",
    }  # fmt: skip
    recipe = (folder / "lf7.yaml").read_text()
    for old, new in changed.items():
        recipe = recipe.replace(old, new)
    (place / "lf_packed.yaml").write_text(recipe)
    shutil.copy(folder / "dataset_info.json", place / "ds")
    commands = {
        "trl": [sys.executable, "bench_wrap.py", "run_trl.py", json.dumps(trl)],
        "swift": [
            "bash", "run_swift.sh", model, rows, str(place / "o_swift"), "lora", str(work.rows), "1",
            str(work.length), str(steps), attention, "--check_model", "false", "--gradient_checkpointing", "false",
            "--lora_rank", str(work.rank), "--use_liger_kernel", "true", "--packing", "true",
        ],
        "lf": [sys.executable, "bench_wrap.py", "llamafactory.cli", "train", str(place / "lf_packed.yaml")],
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    for name in names:
        path = os.pathsep.join(str(sites / part) for part in (name, "shim", "common"))
        settings = {
            "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")])), "W": str(place),
            "BENCH_TOK": str(tokens), "BENCH_NAME": f"{name}, packed", "HF_HUB_OFFLINE": "1", "USE_HF": "1",
            "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DISABLE_VERSION_CHECK": "1",
        }  # fmt: skip
        found += run(commands[name], folder, settings)
    return found


def chats(folder: Path, place: Path, work: Work, steps: int) -> int:
    """Write chats of mixed length that fill the steps; gives the tokens of a step that are not padding."""
    from transformers import AutoTokenizer

    from luthier.data.pack import best_fit_decreasing

    path = place / "ds" / "fix.jsonl"
    count = (steps + 2) * work.rows * work.length // 256
    subprocess.run([sys.executable, "mkdata.py", str(path), str(count), str(work.length)], cwd=folder, check=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(place / f"m_{work.size}")
    lengths = [
        len(tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=True, return_dict=False))
        for line in path.read_text().splitlines()
    ]
    packs = best_fit_decreasing(lengths, work.length)
    return round(work.rows * sum(lengths) / len(packs))


def run(
    command: Sequence[str], folder: Path, settings: Mapping[str, str], *, quiet: bool = False
) -> list[dict[str, Any]]:
    """The clock's lines of a program's output; the output's end when there is none, unless none is expected."""
    done = subprocess.run(command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True)
    found = [json.loads(line.removeprefix("BENCH ")) for line in done.stdout.splitlines() if line.startswith("BENCH ")]
    if not found and not quiet:
        print(f"{' '.join(command[:8])} ... gave nothing:\n{(done.stdout + done.stderr)[-1500:]}", flush=True)
    for row in found:
        row["end"] = last_loss(done.stdout + done.stderr)
    return found


def last_loss(output: str) -> str:
    """The last number behind the word, or the last of those that the launcher lists in a line of their own."""
    told = re.findall(r"""(?<![a-z_])loss['"]?[:= ]+\[?['"]?((?:\d[\d.]*(?:, )?)+)""", output)
    listed = re.findall(r"^[\d. ]*\d\.\d+ *$", output, re.MULTILINE)
    numbers = (told or listed or [""])[-1].replace(",", " ").split()
    return f"loss {float(numbers[-1]):.4f}" if numbers else ""


def make(folder: Path, place: Path, work: Work, steps: int) -> None:
    """The model and the rows, where the launcher looks for them."""
    (place / "ds").mkdir(parents=True, exist_ok=True)
    model = place / f"m_{work.size}"
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, "mkmodel.py", str(model), work.size], cwd=folder, check=True)
    rows = work.rows * (steps + 1)
    arguments = [str(place / "ds" / "fix.jsonl"), str(rows), str(work.length)]
    subprocess.run([sys.executable, "mkfixed.py", *arguments], cwd=folder, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the peers' launchers")
    parser.add_argument("--place", type=Path, default=Path("runs/peers"), help="where models, rows and runs go")
    parser.add_argument("--work", choices=WORKS, default="A")
    parser.add_argument("--peers", nargs="*", default=[])
    parser.add_argument("--modes", nargs="*", choices=MODES, default=["kept"])
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    work, place, folder = WORKS[options.work], options.place.resolve(), options.folder.resolve()
    make(folder, place, work, options.steps)
    tokens = chats(folder, place, work, options.steps) if work.packed else work.length * work.rows
    settings = json.loads((place / f"m_{work.size}" / "config.json").read_text())
    share = operations(settings, full=not work.rank, lengths=[work.length] * work.rows) / most()
    # Each is told as soon as it is there, ours first, so that a call that is cut short has not measured for nothing.
    ours: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for mode in options.modes:
        ours += tell(luthier(folder, place, work, mode, options.steps, tokens), share)
    for name in options.peers:
        if work.packed:
            others += tell(packed_peers(folder, place, work, [name], options.steps, tokens), share)
        else:
            others += tell(peers(folder, place, work, [name], options.steps), share)
    if others:
        best = max(others, key=lambda row: row["tok_per_s"])
        for row in ours:
            print(f"{row['name']}: {row['tok_per_s'] / best['tok_per_s']:.2f} times {best['name']}", flush=True)


def most() -> float:
    """Operations a second of the fastest product; without a GPU a number that makes shares 0."""
    done = subprocess.run([sys.executable, Path(__file__).with_name("ceiling.py")], capture_output=True, text=True)
    return float(done.stdout.split()[0]) * 1e12 if done.returncode == 0 else float("inf")


def tell(rows: list[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """A line for each.

    Args:
        share: that of one step a second in the fastest product's rate; packed rows count as full ones.
    """
    for row in rows:
        peak = "-" if row["peak_alloc_GiB"] is None else row["peak_alloc_GiB"]
        rate = f"{row['tok_per_s']:10,.0f} tokens/s  {share / row['median_s']:4.0%}"
        print(f"{row['name']:22} {rate}  {peak:>7} GiB  {row['end']}", flush=True)
    return rows


if __name__ == "__main__":
    main()
