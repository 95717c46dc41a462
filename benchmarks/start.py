"""How long a person waits: `luthier --help`, and from the command to the first training step of a 5M-parameter model.

    python benchmarks/start.py [--rounds 5]

The first step is timed from the start of the process to the line that reports step 1, with nothing cached.
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

from material import make_chats, make_model

ROWS = 1000


def seconds_to_help() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "luthier", "--help"], check=True, capture_output=True)
    return time.perf_counter() - start


def seconds_to_first_step(model: Path, data: Path, out: Path) -> float:
    command = [sys.executable, "-m", "luthier", "sft", "--json", "--model", str(model), "--train_type", "lora"]
    command += ["--dataset", str(data), "--output_dir", str(out / "runs"), "--cache_dir", str(out / "cache")]
    command += ["--max_steps", "2", "--batch_size", "8", "--gradient_accumulation_steps", "2"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            if row["type"] == "metrics" and "loss" in row:
                seconds = time.perf_counter() - start
                process.stdout.read()
                return seconds
    raise SystemExit(f"no step was reported by: {' '.join(command)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ["HF_HUB_OFFLINE"] = "1"
    helped = [seconds_to_help() for _ in range(rounds)]
    print(f"luthier --help                  {statistics.median(helped):6.2f} s   (target 0.5)")
    stepped: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        data, model = Path(folder) / "chats.jsonl", Path(folder) / "model"
        make_chats(data, ROWS)
        make_model(model, data)
        for i in range(rounds):
            stepped.append(seconds_to_first_step(model, data, Path(folder) / str(i)))
    print(f"command to first training step  {statistics.median(stepped):6.2f} s   (target 10; {ROWS} rows)")


if __name__ == "__main__":
    main()
