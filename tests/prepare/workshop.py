"""Running verbs in this process, as the command line does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.cli import app as cli
from luthier.prepare import verbs
from luthier.prepare.verb import Verb

OTHER = "The luthier planes the spruce top until it rings, and then she carves the scroll. 制琴师把云杉面板刨薄。"
"""What stands in the file that a sample setting names as {other}."""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    report: dict[str, Any]
    rows: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    said: list[dict[str, Any]]
    output: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error the command ended with."""
        return next(line for line in self.said if line["type"] == "error")


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def flags_of(verb: Verb) -> list[str]:
    """A verb's sample settings as flags."""
    words: list[str] = []
    for name, value in verb.sample.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *(json.dumps(item) if not isinstance(item, str) else item for item in values)]
    return words


def command(
    known: Verb, folder: Path, *inputs: Path | str, flags: list[str] | None = None, name: str = "out.jsonl"
) -> list[str]:
    """`--json data <verb> ...` with an output and a report in `folder`; without `flags`, the verb's sample."""
    folder.mkdir(exist_ok=True)
    words = ["--json", "data", known.name, *(str(path) for path in inputs), "--report", str(folder / "report.json")]
    if known.writes:
        words += ["--output", str(folder / name)]
    words += flags_of(known) if flags is None else flags
    if "{other}" in words:
        other = write_rows(folder.parent / "other.jsonl", [{"text": OTHER}])
        words = [str(other) if word == "{other}" else word for word in words]
    return words


def run(verb: str, capsys: Any, folder: Path, *inputs: Path | str, name: str = "out.jsonl", **more: Any) -> Done:
    """Runs `command`."""
    known = verbs.load(verb)
    words = command(known, folder, *inputs, name=name, **more)
    output, report = folder / name, folder / "report.json"
    capsys.readouterr()
    code = cli.main(words)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = sorted(folder.glob(f"{output.stem}*{output.suffix}")) if known.writes else []
    written = [path for path in written if not path.name.endswith((".rejected.jsonl", ".removed.jsonl"))]
    lines = [line for path in written if path.suffix == ".jsonl" for line in path.read_bytes().split(b"\n") if line]
    rejected = folder / (f"{output.stem}.rejected.jsonl" if known.writes else "report.rejected.jsonl")
    return Done(
        code,
        json.loads(report.read_text(encoding="utf-8")) if report.exists() else {},
        [json.loads(line) for line in lines],
        [json.loads(line) for line in rejected.read_text(encoding="utf-8").splitlines()] if rejected.exists() else [],
        said,
        b"".join(path.read_bytes() for path in written),
    )
