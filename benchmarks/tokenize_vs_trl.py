"""From a file to rows a trainer can take, with nothing cached: Luthier against TRL's SFTTrainer, rows a second.

    python benchmarks/tokenize_vs_trl.py [--rows 20000] [--rounds 3] [--data FILE.jsonl]

Both read the same file, render it through the same chat template, tokenise it and mark the trained tokens, with one
process per core, in turns, each in a process of its own.  Luthier also checks every row, counts duplicates and
measures the set for its report.  TRL runs with `dataset_num_proc` of one and of one per core; the faster one counts.

Needs: pip install trl
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LENGTH = 2048
CORES = len(os.sched_getaffinity(0))


def time_luthier(model: Path, data: Path, out: Path) -> tuple[float, int, int]:
    from luthier.data.config import DataConfig
    from luthier.data.dataset import encoding_of, prepare
    from luthier.data.render import Renderer
    from luthier.model.config import ModelConfig
    from luthier.model.load import load_tokenizer
    from luthier.objectives.config import Sft
    from luthier.objectives.language import Language

    start = time.perf_counter()
    renderer = Renderer(load_tokenizer(ModelConfig(path=str(model))))
    objective = Language(Sft(), renderer)
    config = DataConfig(
        datasets=(str(data),),
        max_length=LENGTH,
        overlong="truncate",
        packing=False,
        cache_dir=str(out),
        tokenize_workers=CORES,
    )
    encoding = encoding_of(config, objective.encode, objective.key, renderer, LENGTH)
    prepared = prepare(config, encoding, template_note=renderer.note, seed=0, progress=lambda n: None)
    seconds = time.perf_counter() - start
    trained = sum(int((prepared.train[i].sequences[0].weights > 0).sum()) for i in range(len(prepared.train)))
    return seconds, len(prepared.train), trained


def time_trl(model: Path, data: Path, out: Path, processes: int) -> tuple[float, int, int]:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        output_dir=str(out / "run"),
        max_length=LENGTH,
        assistant_only_loss=True,
        dataset_num_proc=processes if processes > 1 else None,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    few = datasets.load_dataset("json", data_files=str(data), split="train[:10]", cache_dir=str(out / "few"))
    start = time.perf_counter()
    SFTTrainer(model=network, args=settings, train_dataset=few, processing_class=tokenizer)
    without_rows = time.perf_counter() - start
    start = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(out / "all"))
    trainer = SFTTrainer(model=network, args=settings, train_dataset=rows, processing_class=tokenizer)
    # What making the trainer costs without rows is not tokenising; it is taken off in TRL's favour.
    seconds = time.perf_counter() - start - without_rows
    trained = sum(sum(label != -100 for label in row["labels"]) for row in trainer.train_dataset)
    return seconds, len(trainer.train_dataset), trained


def work(side: str, model: str, data: str) -> None:
    """One measurement, printed as the last line."""
    with tempfile.TemporaryDirectory() as folder:
        if side == "luthier":
            result = time_luthier(Path(model), Path(data), Path(folder))
        else:
            result = time_trl(Path(model), Path(data), Path(folder), int(side.rpartition("-")[2]))
    print(json.dumps(result), flush=True)


def measure(side: str, model: Path, data: Path) -> tuple[float, int, int]:
    """Run one side in its own process: seconds, rows, trained tokens."""
    command = [sys.executable, __file__, "--work", side, str(model), str(data)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="rows in the messages shape; made by the script when not given")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    from material import make_chats, make_model

    sides = ("luthier", "trl-1", f"trl-{CORES}")
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "chats.jsonl"
        if not options.data:
            make_chats(data, options.rows)
        model = Path(folder) / "model"
        make_model(model, data)
        rates = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side in sides:
                seconds, rows, trained = measure(side, model, data)
                rates[side].append(rows / seconds)
                print(
                    f"{side:10} {rows / seconds:8,.0f} rows/s   {rows:,} rows, {trained:,} trained tokens", flush=True
                )
    medians = {side: statistics.median(values) for side, values in rates.items()}
    best = max(sides[1:], key=medians.__getitem__)
    print(
        f"\nmedians of {options.rounds}: " + ", ".join(f"{side} {rate:,.0f} rows/s" for side, rate in medians.items())
    )
    print(f"ratio to {best}: {medians['luthier'] / medians[best]:.2f}")


if __name__ == "__main__":
    main()
