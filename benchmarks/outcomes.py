"""What fine-tuning really reaches, each outcome by one command, with seed, time and peak memory.

    python benchmarks/outcomes.py polarity --model PATH/all-MiniLM-L6-v2 [--peer_steps 60]
    python benchmarks/outcomes.py banking77 --model PATH/all-MiniLM-L6-v2
    python benchmarks/outcomes.py wnut17 --model PATH/all-MiniLM-L6-v2
    python benchmarks/outcomes.py resume --model PATH/of/a/chinese/encoder     (recipes/encoder makes one)

Where an outcome has a development set (a file, or a share of the training rows), it chooses the epoch; the test set is
read once, by the checkpoint that was chosen.  `--rate`, `--epochs`, `--batch` and `--dtype` try other settings;
`--device cuda` trains on a GPU.

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()


@dataclass(frozen=True)
class Outcome:
    """One data set and how it is learned."""

    train: str
    dev: str | float | None
    """What chooses the epoch: a file, a share of the training rows, or nothing."""
    test: str
    metric: str
    wanted: float | None
    objective: dict[str, Any]
    epochs: float
    rate: float
    batch: int = 32
    dtype: str = "float32"
    every: int = 100_000
    """Steps between judgements on the development set: an epoch."""
    columns: dict[str, str] = field(default_factory=dict[str, str])


OUTCOMES = {
    "polarity": Outcome(
        "polarity-jsonl/sentence_polarity_train.jsonl",
        None,
        "polarity-jsonl/sentence_polarity_test.jsonl",
        "accuracy",
        0.80,
        {"type": "seq_cls"},
        epochs=1,
        rate=1e-4,
    ),
    "banking77": Outcome(
        "banking77/train.csv",
        0.05,
        "banking77/test.csv",
        "accuracy",
        0.90,
        {"type": "seq_cls"},
        epochs=3,
        rate=3e-4,
        dtype="bfloat16",
        every=297,
        columns={"category": "label"},
    ),
    "wnut17": Outcome(
        "wnut17/wnut17train.conll",
        "wnut17/emerging.dev.conll",
        "wnut17/emerging.test.annotated",
        "f1",
        None,
        {"type": "token_cls"},
        epochs=5,
        rate=3e-4,
        batch=16,
        every=213,
    ),
    "resume": Outcome(
        "resume-ner-zh/train.char.bmes",
        "resume-ner-zh/dev.char.bmes",
        "resume-ner-zh/test.char.bmes",
        "f1",
        0.85,
        {"type": "token_cls"},
        epochs=20,
        rate=5e-4,
        batch=16,
        dtype="bfloat16",
        every=239,
    ),
}


def luthier(name: str, outcome: Outcome, model: str, seed: int, folder: Path, device: str) -> dict[str, Any]:
    """Train, choose and judge through Luthier."""
    from luthier.base.config import validate
    from luthier.base.console import Console
    from luthier.run.config import RunConfig
    from luthier.run.train import train

    tree = {
        "objective": outcome.objective,
        "model": {"path": model, "dtype": outcome.dtype},
        "method": {"type": "full"},
        "data": {
            "datasets": [str(DATA / outcome.train)],
            "validation": [str(DATA / outcome.dev)] if isinstance(outcome.dev, str) else [],
            "split_ratio": outcome.dev if isinstance(outcome.dev, float) else 0.0,
            "columns": outcome.columns,
            "max_length": 256,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"micro_batch": outcome.batch, "accumulation": 1, "epochs": outcome.epochs},
        "optim": {"learning_rate": outcome.rate, "warmup_ratio": 0.1, "schedule": "linear"},
        "eval": {"every": outcome.every, "metric": outcome.metric, "higher_is_better": True},
        "save": {"every": 100_000},
        "output_dir": str(folder / name),
        "seed": seed,
        "device": device,
    }
    start, clock = time.process_time(), time.perf_counter()
    run = train(validate(RunConfig, tree), Console())
    trained = time.process_time() - start
    metrics = judge(outcome, run)
    seconds, wall = time.process_time() - start, time.perf_counter() - clock
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    dev = {row["step"]: round(row[f"eval_{outcome.metric}"], 4) for row in rows if "eval_loss" in row}
    samples = json.loads((run / "data_report.json").read_text())["totals"]["train"]["samples"] * outcome.epochs
    return {"dev": dev, "train_processor_seconds": round(trained, 1), **result(samples, seconds, wall, metrics)}


def judge(outcome: Outcome, run: Path) -> dict[str, float]:
    """What the run's best checkpoint makes of the test set, as `luthier infer` opens and asks it."""
    import torch

    from luthier.data.config import DataConfig
    from luthier.data.sources import open_rows, parse_spec
    from luthier.model.config import ModelConfig
    from luthier.run.predict import open_predictor, predict
    from luthier.run.result import find
    from luthier.score import entities

    rows = open_rows(parse_spec(str(DATA / outcome.test), "hf"), DataConfig())
    asked = [rows[index] for index in range(len(rows))]
    for row in asked:
        for theirs, ours in outcome.columns.items():
            row.value[ours] = row.value.pop(theirs)
    told = predict(asked, open_predictor(find(ModelConfig(path=str(run))), torch.device("cpu")))
    if outcome.metric == "f1":
        return entities.score([row["tags"] for row in told], [row["reference"] for row in told])
    return {"accuracy": sum(row["label"] == row["reference"] for row in told) / len(told)}


def plain(outcome: Outcome, model: str, seed: int, steps: int | None) -> dict[str, Any]:
    """The loop that everybody writes first, for the same rows."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

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
    parser.add_argument("--rate", type=float)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where luthier trains")
    parser.add_argument("--keep", type=Path, help="an empty or new folder that keeps the run")
    parser.add_argument("--only", choices=["luthier", "plain"], help="one side, in this process")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}  # as the command sets it
    given = {name: value for name in ("rate", "epochs", "batch", "dtype") if (value := getattr(args, name)) is not None}
    usual = OUTCOMES[args.outcome]
    outcome = replace(usual, **given)
    outcome = replace(outcome, every=usual.every * usual.batch // outcome.batch)
    if args.only:
        import torch

        torch.set_num_threads(args.threads)
        with tempfile.TemporaryDirectory() as folder:
            if args.only == "plain":
                found = plain(outcome, args.model, args.seed, args.peer_steps)
            else:
                found = luthier(args.outcome, outcome, args.model, args.seed, args.keep or Path(folder), args.device)
        print(json.dumps(found))
        return
    same = [args.outcome, "--model", args.model, "--seed", str(args.seed), "--threads", str(args.threads)]
    same += ["--device", args.device]
    same += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    kept = ["--keep", str(args.keep)] if args.keep else []
    ours = apart([*same, *kept, "--only", "luthier"])
    told = {name: getattr(outcome, name) for name in ("rate", "epochs", "batch", "dtype")} | {"device": args.device}
    print(json.dumps({"outcome": args.outcome, "seed": args.seed, "wanted": outcome.wanted, **told, **ours}))
    if args.outcome == "polarity":
        steps = ["--peer_steps", str(args.peer_steps)] if args.peer_steps else []
        theirs = apart([*same, *steps, "--only", "plain"])
        speed = ours["samples_per_processor_second"] / theirs["samples_per_processor_second"]
        print(json.dumps({"outcome": "plain transformers loop", **theirs, "luthier_is_faster_by": round(speed, 2)}))


if __name__ == "__main__":
    main()
