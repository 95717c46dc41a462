"""How fast `luthier data clean` and `luthier data dedup` are, as commands: read, work, write.

    python benchmarks/clean.py --input en.jsonl zh.jsonl [--copies 4] [--workers 1 2]

Megabytes are those of the rows' text in UTF-8.  "Without the start" leaves out what the same command takes for one row,
which is starting Python and its libraries.  The last line is a recipe of both steps, which share a pass.  Processor
seconds count the command and its processes; on a busy machine only they mean something, and even they suffer.  With
copies, each copy's texts get its number, so that exact duplicates are those of one copy.  Memory is counted as in
`dedup.py`: the last column must not grow with the input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from dedup import measure

from luthier.prepare.view import rewrite, text_of

WORK = {
    "clean": ["clean"],
    "clean, masks": ["clean", "--mask", "all"],
    "clean, C4 and Gopher": ["clean", "--quality", "c4", "gopher"],
    "clean, simplified": ["clean", "--chinese", "simplified", "--width", "chinese"],
    "dedup --exact": ["dedup", "--exact"],
    "dedup --near": ["dedup", "--near"],
    "clean, then dedup --exact": ["run"],
}
RECIPE = "steps: [{clean: {}}, {dedup: {exact: true}}]\n"


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


def run(words: list[str], rows: Path, workers: int, folder: Path) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and GiB of one command from start to end, the interpreter's start included."""
    named = [words[0], str(rows)]
    if words == ["run"]:
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE, encoding="utf-8")
        named = ["run", str(recipe), "--inputs", str(rows)]
    command = [sys.executable, "-m", "luthier", "data", *named, *words[1:], "--workers", str(workers)]
    with tempfile.TemporaryDirectory(dir=folder) as cache:  # a recipe is not to find its steps there
        return measure([*command, "--output", str(folder / "out.jsonl")], Path(cache))


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
        columns = "seconds | processor seconds | MB/s | MB a processor second | without the start | GiB"
        print(f"| work | processes | {columns} |")
        print("|---|---|---|---|---|---|---|---|")
        for label in options.only:
            for workers in options.workers:
                _, start, _ = run(WORK[label], one, workers, folder)
                wall, used, most = run(WORK[label], rows, workers, folder)
                rates = f"{megabytes / wall:.1f} | {megabytes / used:.1f} | {megabytes / (used - start):.1f}"
                print(f"| {label} | {workers} | {wall:.1f} | {used:.1f} | {rates} | {most:.2f} |", flush=True)


if __name__ == "__main__":
    main()
