"""How fast `luthier data clean` and `luthier data dedup` are, as commands: read, work, write.

    python benchmarks/clean.py --input en.jsonl zh.jsonl [--copies 4] [--workers 1 2]

Megabytes are those of the rows' text in UTF-8.  The last column leaves out what the same command takes for one row,
which is starting Python and its libraries.  Processor seconds count the command and its processes; on a busy
machine only they mean something, and even they suffer.  With copies, each copy's texts get its number, so that exact
duplicates are those of one copy.
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
from dataclasses import dataclass
from pathlib import Path

from luthier.prepare.view import rewrite, text_of

WORK = {
    "clean": ["clean"],
    "clean, masks": ["clean", "--mask", "all"],
    "clean, C4 and Gopher": ["clean", "--quality", "c4", "gopher"],
    "clean, simplified": ["clean", "--chinese", "simplified", "--width", "chinese"],
    "dedup --exact": ["dedup", "--exact"],
    "dedup --near": ["dedup", "--near"],
}


@dataclass(frozen=True)
class Took:
    """What a command took."""

    wall: float
    processor: float


def grown(sources: list[Path], copies: int, folder: Path) -> tuple[Path, float]:
    """The input of all commands, and its megabytes of text."""
    path = folder / "rows.jsonl"
    size = 0
    with path.open("w", encoding="utf-8") as stream:
        for copy in range(copies):
            for source in sources:
                for line in source.read_text(encoding="utf-8").splitlines():
                    value = json.loads(line)
                    if copy:
                        value = rewrite(value, lambda field, copy=copy: f"{field.text} {copy}")
                    size += len(text_of(value).encode())
                    stream.write(json.dumps(value, ensure_ascii=False) + "\n")
    return path, size / 1e6


def run(words: list[str], rows: Path, workers: int, folder: Path) -> Took:
    """One command from start to end, the interpreter's start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [sys.executable, "-m", "luthier", "data", words[0], str(rows), *words[1:], "--workers", str(workers)]
    command += ["--output", str(folder / "out.jsonl")]
    environment = {**os.environ, "LUTHIER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    """Measure every kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, nargs="+", required=True)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, megabytes = grown(options.input, options.copies, folder)
        print(f"{megabytes:.1f} MB of text; load of the machine {os.getloadavg()[0]:.1f}")
        one = folder / "one.jsonl"
        one.write_text('{"text": "one row"}\n', encoding="utf-8")
        print("| work | processes | seconds | processor seconds | MB/s | MB a processor second | without the start |")
        print("|---|---|---|---|---|---|---|")
        for label in options.only:
            for workers in options.workers:
                start = run(WORK[label], one, workers, folder)
                took = run(WORK[label], rows, workers, folder)
                net = megabytes / (took.processor - start.processor)
                rates = f"{megabytes / took.wall:.1f} | {megabytes / took.processor:.1f} | {net:.1f}"
                print(f"| {label} | {workers} | {took.wall:.1f} | {took.processor:.1f} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
