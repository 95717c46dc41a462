"""What fine-tuning really reaches, each outcome by one command, with seed, time and peak memory.

    python benchmarks/outcomes.py polarity --model PATH/all-MiniLM-L6-v2 [--peer_steps 60]
    python benchmarks/outcomes.py banking77 --model PATH/all-MiniLM-L6-v2
    python benchmarks/outcomes.py wnut17 --model PATH/all-MiniLM-L6-v2
    python benchmarks/outcomes.py resume --model PATH/of/a/chinese/encoder

Data is that of $LUTHIER_TEST_DATA (default ../shared/data).  Times are processor seconds of reading, training, judging
and saving, without the import of libraries, so a busy machine does not matter much; --threads sets torch's threads.
`polarity` also trains a plain transformers loop on the same rows (batches padded to their longest row, the same
optimizer and schedule), in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()


@dataclass(frozen=True)
class Outcome:
    """One data set and how it is learned."""

    train: str
    test: str
    metric: str
    wanted: float | None
    objective: dict[str, Any]
    epochs: float
    rate: float
    batch: int = 32
    columns: dict[str, str] = field(default_factory=dict[str, str])


OUTCOMES = {
    "polarity": Outcome(
        "polarity-jsonl/sentence_polarity_train.jsonl",
        "polarity-jsonl/sentence_polarity_test.jsonl",
        "accuracy",
        0.80,
        {"type": "seq_cls"},
        epochs=1,
        rate=1e-4,
    ),
    "banking77": Outcome(
        "banking77/train.csv",
        "banking77/test.csv",
        "accuracy",
        0.90,
        {"type": "seq_cls"},
        epochs=4,
        rate=3e-4,
        columns={"category": "label"},
    ),
    "wnut17": Outcome(
        "wnut17/wnut17train.conll",
        "wnut17/emerging.test.annotated",
        "f1",
        None,
        {"type": "token_cls"},
        epochs=5,
        rate=3e-4,
        batch=16,
    ),
    "resume": Outcome(
        "resume-ner-zh/train.char.bmes",
        "resume-ner-zh/test.char.bmes",
        "f1",
        0.85,
        {"type": "token_cls"},
        epochs=8,
        rate=5e-4,
        batch=16,
    ),
}


def luthier(name: str, model: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and judge through Luthier."""
    from luthier.base.config import validate
    from luthier.base.console import Console
    from luthier.run.config import RunConfig
    from luthier.run.train import train

    outcome = OUTCOMES[name]
    tree = {
        "objective": outcome.objective,
        "model": {"path": model},
        "method": {"type": "full"},
        "data": {
            "datasets": [str(DATA / outcome.train)],
            "validation": [str(DATA / outcome.test)],
            "columns": outcome.columns,
            "max_length": 256,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"micro_batch": outcome.batch, "accumulation": 1, "epochs": outcome.epochs},
        "optim": {"learning_rate": outcome.rate, "warmup_ratio": 0.1, "schedule": "linear"},
        "eval": {"every": 100_000},
        "save": {"every": 100_000},
        "output_dir": str(folder / name),
        "seed": seed,
        "device": "cpu",
    }
    start, clock = time.process_time(), time.perf_counter()
    run = train(validate(RunConfig, tree), Console())
    seconds, wall = time.process_time() - start, time.perf_counter() - clock
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if "eval_loss" in row][-1]
    samples = json.loads((run / "data_report.json").read_text())["totals"]["train"]["samples"] * outcome.epochs
    metrics = {key.removeprefix("eval_"): value for key, value in judged.items() if key.startswith("eval_")}
    return result(samples, seconds, wall, metrics)


def plain(name: str, model: str, seed: int, steps: int | None) -> dict[str, Any]:
    """The loop that everybody writes first, for the same rows."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    outcome = OUTCOMES[name]
    sets = [
        [json.loads(line) for line in (DATA / path).read_text(encoding="utf-8").splitlines()]
        for path in (outcome.train, outcome.test)
    ]
    labels = sorted({row["label"] for row in sets[0]})
    start, clock = time.process_time(), time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(seed)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(labels))
    optimizer = torch.optim.AdamW(network.parameters(), lr=outcome.rate, weight_decay=0.0)
    order = torch.randperm(len(sets[0])).tolist()
    batches = [order[at : at + outcome.batch] for at in range(0, len(order), outcome.batch)][:steps]
    schedule = get_linear_schedule_with_warmup(optimizer, len(batches) // 10, len(batches))
    network.train()
    for members in batches:
        rows = [sets[0][index] for index in members]
        inputs = tokenizer([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
        wanted = torch.tensor([labels.index(row["label"]) for row in rows])
        network(**inputs, labels=wanted).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    network.eval()
    right = 0
    with torch.no_grad():
        for at in range(0, len(sets[1]), outcome.batch):
            rows = sets[1][at : at + outcome.batch]
            inputs = tokenizer([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
            wanted = torch.tensor([labels.index(row["label"]) for row in rows])
            right += int((network(**inputs).logits.argmax(1) == wanted).sum())
    seconds, wall = time.process_time() - start, time.perf_counter() - clock
    return result(sum(map(len, batches)), seconds, wall, {"accuracy": right / len(sets[1])})


def result(samples: float, seconds: float, wall: float, metrics: dict[str, float]) -> dict[str, Any]:
    """What is told of a training."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "samples": samples,
        "processor_seconds": round(seconds, 1),
        "wall_seconds": round(wall, 1),
        "samples_per_processor_second": round(samples / seconds, 2),
        "peak_memory_gib": round(peak, 2),
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
    }


def apart(words: list[str]) -> dict[str, Any]:
    """Run this file in a process of its own and take its last line."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outcome", choices=list(OUTCOMES))
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer_steps", type=int, help="steps of the plain loop; unset: an epoch")
    parser.add_argument("--only", choices=["luthier", "plain"], help="one side, in this process")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.only:
        import torch

        torch.set_num_threads(args.threads)
        with tempfile.TemporaryDirectory() as folder:
            if args.only == "plain":
                found = plain(args.outcome, args.model, args.seed, args.peer_steps)
            else:
                found = luthier(args.outcome, args.model, args.seed, Path(folder))
        print(json.dumps(found))
        return
    same = [args.outcome, "--model", args.model, "--seed", str(args.seed), "--threads", str(args.threads)]
    ours = apart([*same, "--only", "luthier"])
    print(json.dumps({"outcome": args.outcome, "seed": args.seed, "wanted": OUTCOMES[args.outcome].wanted, **ours}))
    if args.outcome == "polarity":
        steps = ["--peer_steps", str(args.peer_steps)] if args.peer_steps else []
        theirs = apart([*same, *steps, "--only", "plain"])
        speed = ours["samples_per_processor_second"] / theirs["samples_per_processor_second"]
        print(json.dumps({"outcome": "plain transformers loop", **theirs, "luthier_is_faster_by": round(speed, 2)}))


if __name__ == "__main__":
    main()
