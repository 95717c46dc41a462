"""What a file without a telling name holds, judged by its beginning: JSON, labelled lines, tagged columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import orjson

from luthier.base.errors import DataError
from luthier.data.encoding import detect, utf8_blocks

_SAMPLE = 2**16
_MOST = 0.9
"""Share of the lines that must agree; the others are damage."""
_TAG = re.compile(r"(O|[BIEMSLU][-_]\S+)")


def guess(path: Path) -> str | None:
    """The suffix a file should have: `.jsonl`, `.conll`, `.tsv`, or None when it is not plainly one of these."""
    try:
        head = next(utf8_blocks(path, detect(path)), b"")[:_SAMPLE]
    except DataError:
        return None
    if b"\0" in head:
        return None
    text = head.decode("utf-8", "replace")
    lines = [line for line in text.split("\n")[: -1 if len(head) == _SAMPLE else None] if line.strip()]
    if not lines:
        return None
    if _is_json(lines):
        return ".jsonl"
    if _share(lines, is_tagged) >= _MOST:
        return ".conll"
    return ".tsv" if len(lines) > 1 and _share(lines, _is_labelled) >= _MOST else None


def _share(lines: list[str], test: Callable[[str], bool]) -> float:
    return sum(test(line) for line in lines) / len(lines)


def _is_json(lines: list[str]) -> bool:
    if lines[0].strip() in ("[", "{") or lines[0].lstrip().startswith(("[{", "[ {")):
        return True
    try:
        return isinstance(orjson.loads(lines[0]), dict)
    except orjson.JSONDecodeError:
        return False


def is_tagged(line: str) -> bool:
    """Whether a line is a token and its tag, as in CoNLL files."""
    parts = line.split("\t") if "\t" in line else line.split()
    return len(parts) > 1 and _TAG.fullmatch(parts[-1].strip()) is not None


def is_number(text: str | float) -> bool:
    """Whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_labelled(line: str) -> bool:
    return line.count("\t") == 1
