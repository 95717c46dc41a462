"""From a file to rows a trainer can take, with nothing cached: Luthier against TRL's SFTTrainer, rows a second.

    python benchmarks/tokenize_vs_trl.py [--rows 20000] [--rounds 3] [--data FILE.jsonl]

Both read the same file, render it through the same chat template, tokenise it and mark the trained tokens, with one
process per core, in turns, each in a process of its own; wall time and processor time of all processes.  Luthier also
checks every row, counts duplicates and measures the set for its report.  TRL runs with `dataset_num_proc` of one and
of one per core; the faster one counts.

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
from pathlib import Path

import numpy as np

LENGTH = 2048
CORES = len(os.sched_getaffinity(0))


def clocks() -> np.ndarray:
    """Wall time, and processor time of this process and the ones it has waited for, in seconds."""
    used = os.times()
    return np.array([used.elapsed, used.user + used.system + used.children_user + used.children_system])


def time_luthier(model: Path, data: Path, out: Path) -> list[float]:
    from luthier.data.config import DataConfig
    from luthier.data.dataset import encoding_of, prepare
    from luthier.data.render import Renderer
    from luthier.model.config import ModelConfig
    from luthier.model.load import load_tokenizer
    from luthier.objectives.config import Sft
    from luthier.objectives.language import Language

    start = clocks()
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
    encoding = encoding_of(config, objective.encode, objective.key, renderer.stop_ids, LENGTH)
    prepared = prepare(config, encoding, template_note=renderer.note, seed=0, progress=lambda n: None)
    spent = clocks() - start
    trained = sum(int((prepared.train[i].sequences[0].weights > 0).sum()) for i in range(len(prepared.train)))
    return [*spent, len(prepared.train), trained]


def time_trl(model: Path, data: Path, out: Path, processes: int) -> list[float]:
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
    start = clocks()
    SFTTrainer(model=network, args=settings, train_dataset=few, processing_class=tokenizer)
    without_rows = clocks() - start
    start = clocks()
    rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(out / "all"))
    trainer = SFTTrainer(model=network, args=settings, train_dataset=rows, processing_class=tokenizer)
    # What making the trainer costs without rows is not tokenising; it is taken off in TRL's favour.
    spent = clocks() - start - without_rows
    trained = sum(sum(label != -100 for label in row["labels"]) for row in trainer.train_dataset)
    return [*spent, len(trainer.train_dataset), trained]


def work(side: str, model: str, data: str) -> None:
    """One measurement, printed as the last line."""
    with tempfile.TemporaryDirectory() as folder:
        if side == "luthier":
            result = time_luthier(Path(model), Path(data), Path(folder))
        else:
            result = time_trl(Path(model), Path(data), Path(folder), int(side.rpartition("-")[2]))
    print(json.dumps(result), flush=True)


def measure(side: str, model: Path, data: Path) -> list[float]:
    """Run one side in its own process: seconds, processor seconds, rows, trained tokens."""
    command = [sys.executable, __file__, "--work", side, str(model), str(data)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
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
        taken = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side in sides:
                taken[side].append(measure(side, model, data))
    wall = {side: statistics.median(rows / seconds for seconds, _, rows, _ in runs) for side, runs in taken.items()}
    work_of = {side: statistics.median(1000 * cpu / rows for _, cpu, rows, _ in runs) for side, runs in taken.items()}
    print(f"medians of {options.rounds} rounds of {options.rows:,} rows")
    for side in sides:
        trained = f"{taken[side][0][-1]:,.0f} trained tokens"
        print(f"  {side:8} {wall[side]:7,.0f} rows/s   {work_of[side]:.2f} ms of a core a row   {trained}")
    best = max(sides[1:], key=wall.__getitem__)
    least = min(work_of[side] for side in sides[1:])
    print(
        f"  ratio to {best}: {wall['luthier'] / wall[best]:.2f}   in processor time: {least / work_of['luthier']:.2f}"
    )


if __name__ == "__main__":
    main()
