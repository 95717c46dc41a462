"""Trained speed of a step: Luthier against TRL's SFTTrainer.

    python benchmarks/sft_vs_trl.py [--method full|lora] [--rounds 3] [--data FILE.jsonl]

Same machine, same model, same rows, in turns (A B A B ...), each in a process of its own; medians are compared.  A rate
counts tokens that are not padding, over the wall time from the end of a warm-up step to the end of the last one.
Rows come in file order on both sides, so every step holds the same samples and the losses can be compared.
TRL runs in the settings that could be its best on a CPU; the fastest of them is what Luthier is compared with:

    padded    dynamic padding, rows in file order
    grouped   dynamic padding, rows of similar length together (its losses belong to other steps)
    free      padding_free: rows laid end to end, told apart by positions

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

MICRO, ACCUMULATION, LENGTH, WARM_UP = 8, 2, 2048, 2
RATE = 5e-4


def run_luthier(model: Path, data: Path, method: str, steps: int, out: Path) -> dict:
    from luthier.base.console import Console
    from luthier.run.config import RunConfig
    from luthier.run.train import train

    config = RunConfig.model_validate(
        {
            "model": {"path": str(model), "dtype": "float32"},
            "method": {"type": "lora", "rank": 8, "alpha": 16} if method == "lora" else {"type": "full"},
            "data": {
                "datasets": [str(data)],
                "max_length": LENGTH,
                "shuffle": False,
                "packing": False,
                "cache_dir": str(out / "cache"),
            },
            "train": {"max_steps": steps, "micro_batch": MICRO, "accumulation": ACCUMULATION},
            "optim": {
                "learning_rate": RATE,
                "schedule": "constant",
                "weight_decay": 0.0,
                "beta2": 0.999,
                "max_grad_norm": 1.0,
            },
            "save": {"every": None},
            "log": {"every": 1, "report_to": ["none"]},
            "output_dir": str(out / "runs"),
        }
    )
    run = train(config, Console(quiet=True))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "times": [row["time"] for row in rows],
        "tokens": [row["tokens"] for row in rows],
        "losses": [row["loss"] for row in rows],
    }


def run_trl(model: Path, data: Path, method: str, steps: int, out: Path, variant: str) -> dict:
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            times.append(time.time())

    settings = SFTConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ACCUMULATION,
        max_length=None if variant == "free" else LENGTH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        assistant_only_loss=True,
        padding_free=variant == "free",
        train_sampling_strategy="group_by_length" if variant == "grouped" else "sequential",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32", attn_implementation="sdpa"),
        args=settings,
        train_dataset=datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(out / "cache")),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear") if method == "lora" else None,
        callbacks=[Clock()],
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return {"times": times, "tokens": [row["num_tokens"] for row in logs], "losses": [row["loss"] for row in logs]}


def work(side: str, model: str, data: str, method: str, steps: str) -> None:
    """One measurement, printed as the last line."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(model), Path(data), method, int(steps), Path(folder))
        name, _, variant = side.partition("-")
        result = run_luthier(*arguments) if name == "luthier" else run_trl(*arguments, variant)
    print(json.dumps(result), flush=True)


def measure(side: str, model: Path, data: Path, method: str, steps: int) -> dict:
    """Run one side in its own process: tokens a second after the warm-up, and the losses."""
    command = [sys.executable, __file__, "--work", side, str(model), str(data), method, str(steps)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    seconds = result["times"][-1] - result["times"][WARM_UP - 1]
    return {"rate": (result["tokens"][-1] - result["tokens"][WARM_UP - 1]) / seconds, "losses": result["losses"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--data", type=Path, help="rows in the messages shape; made by the script when not given")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    from material import make_chats, make_model

    sides = ("luthier", "trl-padded", "trl-grouped", "trl-free")
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "chats.jsonl"
        if not options.data:
            make_chats(data, options.steps * MICRO * ACCUMULATION)
        model = Path(folder) / "model"
        make_model(model, data)
        rounds = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side in sides:
                rounds[side].append(measure(side, model, data, options.method, options.steps))
                print(f"{side:12} {rounds[side][-1]['rate']:8,.0f} tokens/s", flush=True)
    rates = {side: statistics.median(one["rate"] for one in results) for side, results in rounds.items()}
    best = max(sides[1:], key=rates.__getitem__)
    print(f"\n{options.method}: medians of {options.rounds}, tokens/s without padding")
    for side in sides:
        losses = rounds[side][0]["losses"]
        shown = "  ".join(f"{losses[i]:.5f}" for i in (0, len(losses) // 2, len(losses) - 1))
        print(f"  {side:12} {rates[side]:8,.0f}   losses first, middle, last: {shown}")
    print(f"  ratio to {best}: {rates['luthier'] / rates[best]:.2f}")


if __name__ == "__main__":
    main()
