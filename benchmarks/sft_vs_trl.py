"""Speed of a training step: Luthier against TRL's SFTTrainer.

    python benchmarks/sft_vs_trl.py [--method full|lora] [--steps 30] [--data FILE.jsonl]

Same machine, same model, same rows, same run: every side is a process of its own that takes one optimizer step when it
is told to, and the sides take turns (A B C D A B C D ...), so that whatever else the machine does falls on all alike.
A rate is tokens that are not padding, over the wall time and over the processor time of all steps after a warm-up.
Rows come in file order, so that a step holds the same samples on every side and losses can be compared.
TRL runs in the settings that could be its best on a CPU; the fastest of them is what Luthier is compared with:

    padded    dynamic padding
    grouped   dynamic padding, rows of similar length together (so its losses belong to other steps)
    free      padding_free: rows laid end to end, told apart by positions

On a machine that does other things too, OMP_NUM_THREADS=1 and the processor time are what to look at.

Needs: pip install trl
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from luthier.base.console import Console

MICRO, ACCUMULATION, LENGTH, WARM_UP = 8, 2, 2048, 2
RATE = 5e-4
SIDES = ("luthier", "trl-padded", "trl-grouped", "trl-free")


class Turn:
    """A worker's end of the bargain: report the step just taken, then wait to be told to take the next."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever libraries print goes elsewhere
        self.since = time.perf_counter(), time.process_time()

    def end(self, tokens: float, loss: float) -> None:
        seconds, core = time.perf_counter() - self.since[0], time.process_time() - self.since[1]
        step = {"seconds": seconds, "core_seconds": core, "tokens": tokens, "loss": loss}
        print(json.dumps(step), file=self.out, flush=True)
        sys.stdin.readline()
        self.since = time.perf_counter(), time.process_time()


class Paced(Console):
    """A console that ends the turn when a step is logged."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self.turn = turn

    def metrics(self, text: str, **fields) -> None:
        self.turn.end(fields["tokens"], fields["loss"])


def run_luthier(model: Path, data: Path, method: str, steps: int, out: Path, turn: Turn) -> None:
    from luthier.run.config import RunConfig
    from luthier.run.train import train

    settings = {
        "model": {"path": str(model), "dtype": "float32"},
        "method": {"type": "lora", "rank": 8, "alpha": 16} if method == "lora" else {"type": "full"},
        "data": {
            "datasets": [str(data)],
            "max_length": LENGTH,
            "shuffle": False,
            "packing": False,
            "loader_workers": 0,
            "cache_dir": str(out / "cache"),
        },
        "train": {"max_steps": steps, "micro_batch": MICRO, "accumulation": ACCUMULATION},
        "optim": {"learning_rate": RATE, "schedule": "constant", "weight_decay": 0.0, "beta2": 0.999},
        "save": {"every": None},
        "log": {"every": 1, "report_to": ["none"]},
        "output_dir": str(out / "runs"),
    }
    train(RunConfig.model_validate(settings), Paced(turn))


def run_trl(model: Path, data: Path, method: str, steps: int, out: Path, turn: Turn, variant: str) -> None:
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Pace(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                turn.end(logs["num_tokens"], logs["loss"])

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
        callbacks=[Pace()],
    )
    trainer.train()


def work(side: str, model: str, data: str, method: str, steps: str) -> None:
    """Train one side, a step at a time."""
    turn = Turn()
    name, _, variant = side.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        if name == "luthier":
            run_luthier(Path(model), Path(data), method, int(steps), Path(folder), turn)
        else:
            run_trl(Path(model), Path(data), method, int(steps), Path(folder), turn, variant)


class Worker:
    """One side, in a process of its own."""

    def __init__(self, side: str, arguments: list[str], errors: Path):
        self.side, self.errors = side, errors
        self.steps: list[dict[str, float]] = []
        command = [sys.executable, __file__, "--work", side, *arguments]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=environment
            )

    def go(self) -> None:
        """Let it take a step."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def step(self) -> None:
        """Wait for the step it is taking."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side} failed:\n{self.errors.read_text()[-3000:]}")
        self.steps.append(json.loads(line))


def compare(model: Path, data: Path, method: str, steps: int, folder: Path) -> None:
    # Every side takes its first step, and all that comes before it, alone; then they take turns.
    workers: list[Worker] = []
    for side in SIDES:
        workers.append(Worker(side, [str(model), str(data), method, str(steps)], folder / f"{side}.log"))
        workers[-1].step()
    for _ in range(steps - 1):
        for worker in workers:
            worker.go()
            worker.step()
    for worker in workers:
        worker.process.communicate("go\n")
    show(method, {worker.side: worker.steps for worker in workers})


def show(method: str, taken: dict[str, list[dict[str, float]]]) -> None:
    rates = {side: rate(rows, "seconds") for side, rows in taken.items()}
    per_core = {side: rate(rows, "core_seconds") for side, rows in taken.items()}
    steps = len(taken["luthier"]) - 1 - WARM_UP
    print(f"{method}: {steps} steps taken in turns; tokens that are not padding")
    for side, rows in taken.items():
        losses = "  ".join(f"{rows[i]['loss']:.5f}" for i in (0, len(rows) // 2, -1))
        print(f"  {side:12} {rates[side]:6,.0f} a second   {per_core[side]:6,.0f} a core-second   losses {losses}")
    for name, medians in (("wall time", rates), ("processor time", per_core)):
        best = max(SIDES[1:], key=medians.__getitem__)
        print(f"  ratio to the fastest, by {name}: {medians['luthier'] / medians[best]:.2f} ({best})")


def rate(rows: list[dict[str, float]], clock: str) -> float:
    """Tokens by a clock over the steps after the warm-up; `tokens` of a row counts from the beginning."""
    return (rows[-1]["tokens"] - rows[WARM_UP]["tokens"]) / sum(row[clock] for row in rows[WARM_UP + 1 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--data", type=Path, help="rows in the messages shape; made by the script when not given")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    from material import make_chats, make_model

    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "chats.jsonl"
        if not options.data:
            make_chats(data, options.steps * MICRO * ACCUMULATION)
        model = Path(folder) / "model"
        make_model(model, data)
        compare(model, data, options.method, options.steps, Path(folder))


if __name__ == "__main__":
    main()
