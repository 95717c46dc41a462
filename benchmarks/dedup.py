"""Near duplicates among many short rows: `luthier data dedup --near` beside datasketch and rensa, end to end.

    python benchmarks/dedup.py [--rows 100000] [--only luthier rensa datasketch] [--workers 1 2]

All read the same JSON lines, cut the same shingles (3 words, or 5 characters of Chinese; lower case, no punctuation),
use at most 128 hash functions at a similarity of 0.8, keep the first of similar rows and write those kept, each in a
process of its own.  Luthier also judges its candidates by the shingles they really share, which the others do not:
"right" is the share of the removed rows that are similar to the row they were made from, "found" the share of the rows
so similar that are removed.

Memory is the most that a process and its children held at a time (resident, shared pages counted in each).

Needs: pip install datasketch rensa
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil

THRESHOLD, HASHES = 0.8, 128
BATCH = 10_000
PEERS = ("rensa", "datasketch")


def make(path: Path, rows: int) -> None:
    """Short rows in English and Chinese; a tenth are earlier rows in which a few words were changed."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 9))) for _ in range(20_000)]
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    earlier: list[tuple[list[str], str]] = []
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            alike = False
            if number % 10 == 9:
                source, between = rng.choice(earlier)
                base = list(source)
                for _ in range(rng.randint(0, max(1, len(base) // 25))):
                    base[rng.randrange(len(base))] = rng.choice(words if between else characters)
                one, other = set(cut(source, between)), set(cut(base, between))
                alike = len(one & other) >= THRESHOLD * len(one | other)
            else:
                vocabulary, between = (words, " ") if rng.random() < 0.6 else (characters, "")
                base = rng.choices(vocabulary, k=rng.randint(12, 40) if between else rng.randint(20, 80))
                if len(earlier) < 200_000:
                    earlier.append((base, between))
            row = {"id": number, "text": between.join(base), "alike": alike}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def cut(tokens: list[str], between: str) -> list[str]:
    """Shingles: 3 words, or 5 characters."""
    size = 3 if between else 5
    return [between.join(tokens[at : at + size]) for at in range(max(1, len(tokens) - size + 1))]


def shingled(path: Path) -> Iterator[tuple[int, bytes, list[str]]]:
    """Number, line and shingles of every row, as scripts that use the peers cut them."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream):
            text = json.loads(line)["text"].lower()
            if text.isascii():
                yield number, line, cut(text.split(), " ")
            else:
                yield number, line, cut([character for character in text if character.isalnum()], "")


def with_datasketch(rows: Path, output: Path) -> None:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=HASHES)
    with output.open("wb") as stream:
        for number, line, shingles in shingled(rows):
            hashed = MinHash(num_perm=HASHES)
            hashed.update_batch([shingle.encode() for shingle in shingles])
            if not index.query(hashed):
                index.insert(number, hashed, check_duplication=False)
                stream.write(line)


def with_rensa(rows: Path, output: Path) -> None:
    from rensa import RMinHash, RMinHashDeduplicator

    seen = RMinHashDeduplicator(THRESHOLD, HASHES, use_lsh=True, num_bands=16)
    with output.open("wb") as stream:
        waiting: list[tuple[int, bytes, list[str]]] = []

        def clear() -> None:
            hashed = RMinHash.from_token_sets([shingles for _, _, shingles in waiting], HASHES, 42)
            for (number, line, _), one in zip(waiting, hashed, strict=True):
                if seen.add(str(number), one):
                    stream.write(line)
            waiting.clear()

        for row in shingled(rows):
            waiting.append(row)
            if len(waiting) == BATCH:
                clear()
        clear()


def commands(only: list[str], workers: list[int], rows: Path, output: Path) -> dict[str, list[str]]:
    """What is run, by its name."""
    made: dict[str, list[str]] = {}
    flags = ["data", "dedup", str(rows), "--near", "--threshold", str(THRESHOLD), "--permutations", str(HASHES)]
    if "luthier" in only:
        for many in workers:
            words = [*flags, "--output", str(output), "--workers", str(many)]
            made[f"luthier, {many} processes"] = [sys.executable, "-m", "luthier", *words]
    for name in PEERS:
        if name in only:
            made[name] = [sys.executable, __file__, "--peer", name, str(rows), str(output)]
    return made


def measure(command: list[str], cache: Path) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and GiB of a command."""
    environment = {**os.environ, "LUTHIER_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, most = time.perf_counter(), 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                most = max(most, sum(one.memory_info().rss for one in (tree, *tree.children(recursive=True))))
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"{command}: {(process.stderr.read() if process.stderr else b'').decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used, most / 2**30


def judged(rows: Path, output: Path) -> tuple[float, float]:
    """Share of the removed rows that are like an earlier one, and share of those that were removed."""
    made = {row["id"] for row in map(json.loads, rows.open(encoding="utf-8")) if row["alike"]}
    kept = {json.loads(line)["id"] for line in output.open(encoding="utf-8")}
    total = sum(1 for _ in rows.open("rb"))
    removed = set(range(total)) - kept
    return len(removed & made) / max(1, len(removed)), len(removed & made) / max(1, len(made))


def main() -> None:
    """Measure every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=["luthier", *PEERS], default=["luthier", *PEERS])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        name, rows, output = options.peer
        (with_rensa if name == "rensa" else with_datasketch)(Path(rows), Path(output))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, output = folder / "rows.jsonl", folder / "out.jsonl"
        make(rows, options.rows)
        size = rows.stat().st_size / 1e6
        print(f"{options.rows:,} rows, {size:.1f} MB; load of the machine {os.getloadavg()[0]:.1f}")
        print("| with | seconds | processor seconds | GiB | right | found |")
        print("|---|---|---|---|---|---|")
        there = [name for name in options.only if name == "luthier" or find_spec(name)]
        for label, command in commands(there, options.workers, rows, output).items():
            wall, used, most = measure(command, folder / "cache")
            right, found = judged(rows, output)
            print(f"| {label} | {wall:.1f} | {used:.1f} | {most:.2f} | {right:.1%} | {found:.1%} |", flush=True)
        for name in sorted(set(options.only) - set(there)):
            print(f"{name} is not installed and was left out: pip install {name}")


if __name__ == "__main__":
    main()
