"""Every way of tuning on one data set: what moves, memory, processor time, quality, size on disk, what is forgotten.

    python benchmarks/methods.py --work /tmp/methods [--only LoRA "prefix (P-tuning v2)"] [--times 1 3] [--inside]

Each is one `luthier sft` of the bundled model on a CPU, in a process of its own: the same questions to tables (WikiSQL,
to be answered in SQL) in the same order.  Each method starts from a learning rate that is usual for it or did
best here, and runs once with each multiple of it in `--times`; 64 rows that nothing is trained on choose the multiple,
64 others give the loss that is told.  `--inside` goes on, three times higher or lower, until the best rate has a worse
one on either side.  The general set is Chinese instructions that nobody trains on.  Processor seconds are those of the
whole command.  A row is kept in the work folder as soon as it is there, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))
METHODS: dict[str, tuple[float, str]] = {
    "full": (5e-4, "full"),
    "full, layer-wise decay 0.8": (5e-4, "full --layer_decay 0.8"),
    "LoRA": (2e-3, "lora"),
    "QLoRA (nf4)": (2e-3, "lora --quant_bits 4"),
    "DoRA": (2e-3, "lora --use_dora true"),
    "prompt": (9e-2, "prompt"),
    "prefix (P-tuning v2)": (1e-1, "prefix"),
    "P-tuning v1": (3e-3, "ptuning"),
    "IA3": (1e-1, "ia3"),
    "AdaLoRA": (5e-2, "adalora"),
    "VeRA": (1e-1, "vera"),
    "OFT": (2e-3, "oft"),
    "BOFT": (6e-3, "boft"),
    "norms": (3e-2, "ln_tuning"),
    "biases": (1e-1, "bitfit"),
    "LISA": (5e-4, "lisa --lisa_step_interval 5"),
}
"""A learning rate that is usual for each, or that did best here, and the flags behind --train_type."""
SEED = 42


HELD = 64
"""Rows that choose a learning rate, and as many that judge."""


@dataclass(frozen=True)
class Row:
    """What one method took and gave."""

    method: str
    rate: float
    trained: int
    memory_gib: float
    seconds: float
    before: float
    chosen_by: float
    """loss on the rows that choose"""
    after: float
    general: float
    """rise of the loss on the general set"""
    size: int
    """bytes of the artefact's weights"""


def measure(name: str, rate: float, work: Path, steps: int) -> Row:
    """Run one method and read what it left."""
    kept = work / f"{name.replace(' ', '-')}-{rate:g}-{steps}.json"
    if kept.exists():
        return Row(**json.loads(kept.read_text()))
    folder = kept.with_suffix("")
    command = [
        sys.executable, "-m", "luthier", "sft", "--model", "nano", "--dataset", str(work / "train.jsonl"),
        "--val_dataset", str(work / "judge.jsonl"),
        "--general_dataset", str(work / "choose.jsonl"), str(work / "general.jsonl"), "--max_steps", str(steps),
        "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1", "--max_length", "160",
        "--save_steps", str(steps), "--eval_steps", str(steps), "--seed", str(SEED), "--report_to", "none",
        "--warmup_ratio", "0.1", "--learning_rate", str(rate), "--output_dir", str(folder), "--device", "cpu",
        "--train_type", *METHODS[name][1].split(" "),
    ]  # fmt: skip
    before = os.times()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{name}: {done.stdout[-2000:]}")
    run = max(folder.glob("v*"), key=lambda path: path.stat().st_mtime)
    checkpoint = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()
    rows: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [row["eval_loss"] for row in rows if "eval_loss" in row]
    changes = json.loads((run / "forgetting.json").read_text())["changes"]
    losses = {Path(change["set"]).name: change for change in changes if change["metric"] == "loss"}
    with safe_open(checkpoint / "trained.safetensors", "pt") as file:
        trained = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 (not a mapping)
    artefact = [*checkpoint.glob("adapter_model*.safetensors"), *checkpoint.glob("model*.safetensors")]
    row = Row(
        name,
        rate,
        trained,
        max(row["memory_gib"] for row in rows if "memory_gib" in row),
        after.children_user + after.children_system - before.children_user - before.children_system,
        judged[0],
        losses["choose.jsonl"]["after"],
        judged[-1],
        losses["general.jsonl"]["after"] - losses["general.jsonl"]["before"],
        sum(file.stat().st_size for file in artefact),
    )
    kept.write_text(json.dumps(asdict(row)))
    return row


def tried(name: str, times: list[float], inside: bool, work: Path, steps: int) -> list[Row]:
    """The rows of one method, by their learning rate."""
    rates = {float(f"{METHODS[name][0] * number:.3g}") for number in times}
    while True:
        rows = [measure(name, rate, work, steps) for rate in sorted(rates)]
        best = min(rows, key=lambda row: row.chosen_by)
        if not inside or best not in (rows[0], rows[-1]):
            return rows
        rates.add(float(f"{best.rate * 3 if best is rows[-1] else best.rate / 3:.3g}"))


def lay_out(work: Path) -> None:
    """Rows to train on, to choose by and to judge by, none of them twice; and a general set."""
    chosen, judged = (questions(part)[:HELD] for part in ("valid", "test"))
    general = next(iter(sorted((DATA / "belle").rglob("*.json*")))).read_text(encoding="utf-8").splitlines()
    parts = {
        "train": [row for row in questions("train") if row not in chosen and row not in judged],
        "choose": chosen,
        "judge": judged,
        "general": [line for line in general if line.strip().startswith("{")][:HELD],
    }
    for name, rows in parts.items():
        (work / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def questions(part: str) -> list[str]:
    """Rows of WikiSQL: the table and what is asked, and the answer in SQL."""
    found: list[str] = []
    for line in (DATA / f"mlx-wikisql/{part}.jsonl").read_text(encoding="utf-8").splitlines():
        asked, _, answer = json.loads(line)["text"].partition("\nA: ")
        found.append(json.dumps({"query": asked, "response": answer.removesuffix("</s>").strip()}, ensure_ascii=False))
    return list(dict.fromkeys(found))


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--times", type=float, nargs="+", default=[1.0], help="multiples of the usual learning rate")
    parser.add_argument("--inside", action="store_true", help="go on until the best rate is neither first nor last")
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lay_out(given.work)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    print(f"{date.today()}, seed {SEED}, {given.steps} steps of 8 rows, nano, CPU, {libraries}\n")
    head = "method", "learning rate", "numbers that move", "peak GiB", "processor s", "loss before", "after"
    head = *head, "general set", "on disk", "other rates: loss"
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name in given.only:
        rows = tried(name, given.times, given.inside, given.work, given.steps)
        row = min(rows, key=lambda row: row.chosen_by)
        others = ", ".join(f"{other.rate:g}: {other.after:.3f}" for other in rows if other is not row) or "none"
        print(
            f"| {row.method} | {row.rate:g} | {row.trained:,} | {row.memory_gib:.2f} | {row.seconds:.0f} | "
            f"{row.before:.3f} | {row.after:.3f} | {row.general:+.3f} | {row.size / 2**20:.2f} MiB | {others} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
