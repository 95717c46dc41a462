"""Every way of tuning on one data set: what moves, memory, processor time, quality, size on disk, what is forgotten.

    python benchmarks/methods.py --work /tmp/methods [--steps 30] [--only lora prefix]

Each is one `luthier sft` of the bundled model on a CPU: the same rows of dolly in the same order, judged before and
after on 64 of those rows (draws of one file share a seed), with a learning rate of its own that is usual for it.  The
general set is Chinese instructions that nobody trains on.  Processor seconds are those of the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))
METHODS: dict[str, list[str]] = {
    "full": ["--train_type", "full", "--learning_rate", "5e-4"],
    "full, layer-wise decay 0.8": ["--train_type", "full", "--learning_rate", "5e-4", "--layer_decay", "0.8"],
    "LoRA": ["--train_type", "lora", "--learning_rate", "2e-3"],
    "QLoRA (nf4)": ["--train_type", "lora", "--learning_rate", "2e-3", "--quant_bits", "4"],
    "DoRA": ["--train_type", "lora", "--use_dora", "true", "--learning_rate", "2e-3"],
    "prompt": ["--train_type", "prompt", "--learning_rate", "3e-2"],
    "prefix (P-tuning v2)": ["--train_type", "prefix", "--learning_rate", "1e-2"],
    "P-tuning v1": ["--train_type", "ptuning", "--learning_rate", "3e-3"],
    "IA3": ["--train_type", "ia3", "--learning_rate", "1e-2"],
    "AdaLoRA": ["--train_type", "adalora", "--learning_rate", "5e-3"],
    "VeRA": ["--train_type", "vera", "--learning_rate", "1e-2"],
    "OFT": ["--train_type", "oft", "--learning_rate", "2e-3"],
    "norms": ["--train_type", "ln_tuning", "--learning_rate", "1e-2"],
    "biases": ["--train_type", "bitfit", "--learning_rate", "1e-2"],
    "LISA": ["--train_type", "lisa", "--learning_rate", "5e-4", "--lisa_step_interval", "5"],
}
SEED = 42


@dataclass(frozen=True)
class Row:
    """What one method took and gave."""

    method: str
    trained: int
    memory_gib: float
    seconds: float
    before: float
    after: float
    general: float
    """rise of the loss on the general set"""
    size: int
    """bytes of the artefact's weights"""


def measure(name: str, words: list[str], work: Path, steps: int) -> Row:
    """Run one method and read what it left."""
    folder = work / name.split(" ")[0].strip(",") / str(len(words))
    command = [
        sys.executable, "-m", "luthier", "sft", "--model", "nano", "--dataset",
        f"{DATA}/dolly-ir/dolly_instruction_response.jsonl#{steps * 8}", "--val_dataset",
        f"{DATA}/dolly-ir/dolly_instruction_response.jsonl#64", "--general_dataset", str(work / "general.jsonl"),
        "--max_steps", str(steps), "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1",
        "--max_length", "192", "--save_steps", str(steps), "--eval_steps", str(steps), "--seed", str(SEED),
        "--report_to", "none", "--warmup_ratio", "0.1", "--output_dir", str(folder), *words,
    ]  # fmt: skip
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    run = max(folder.glob("v*"), key=lambda path: path.stat().st_mtime)
    checkpoint = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()
    rows: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [row["eval_loss"] for row in rows if "eval_loss" in row]
    changes = json.loads((run / "forgetting.json").read_text())["changes"]
    with safe_open(checkpoint / "trained.safetensors", "pt") as file:
        trained = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 (not a mapping)
    artefact = [*checkpoint.glob("adapter_model*.safetensors"), *checkpoint.glob("model*.safetensors")]
    return Row(
        name,
        trained,
        max(row["memory_gib"] for row in rows if "memory_gib" in row),
        after.children_user + after.children_system - before.children_user - before.children_system,
        judged[0],
        judged[-1],
        next(change["after"] - change["before"] for change in changes if change["metric"] == "loss"),
        sum(file.stat().st_size for file in artefact),
    )


def general(path: Path) -> None:
    """Chinese instructions, as chats that the model is judged on and never trained on."""
    source = next(iter(sorted((DATA / "belle").rglob("*.json*"))))
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip().startswith("{")][:64]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    general(chosen.work / "general.jsonl")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    print(f"{date.today()}, seed {SEED}, {chosen.steps} steps of 8 rows, nano, CPU, {libraries}\n")
    print("| method | numbers that move | peak GiB | processor s | loss before | after | general set | on disk |")
    print("|---|---|---|---|---|---|---|---|")
    for name in chosen.only:
        row = measure(name, METHODS[name], chosen.work, chosen.steps)
        print(
            f"| {row.method} | {row.trained:,} | {row.memory_gib:.2f} | {row.seconds:.0f} | {row.before:.3f} | "
            f"{row.after:.3f} | {row.general:+.3f} | {row.size / 2**20:.2f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
