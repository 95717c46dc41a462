"""Where rows come from: the notation of data sets, and opening what it names.

Notation: `[hf::|ms::]<path or hub id>[:subset][#N]`.  An existing local path always wins over parsing.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

from luthier.base.config import nearest
from luthier.base.errors import ConfigError, DataError
from luthier.data import tables, textfile
from luthier.data.config import DataConfig
from luthier.data.mix import take_indices
from luthier.data.row import Row, Rows
from luthier.data.textfile import cache_root, describe, kind_of, open_text, stream_text, suffix_of

__all__ = [
    "DatasetSpec",
    "Row",
    "Rows",
    "drawn_rows",
    "files_of",
    "open_file",
    "open_rows",
    "parse_spec",
    "stream_rows",
]

SUFFIXES = (*textfile.SUFFIXES, *tables.SUFFIXES)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ABOUT_DATA = re.compile(
    r"(readme|license|licence|notice|changelog)\b.*|dataset_(infos?|dict)\.json|state\.json|cache-.*\.arrow",
    re.IGNORECASE,
)
"""Files that lie beside data without being data."""


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One data set as the user named it.  `take` is the N of `#N`: how many rows to draw from it."""

    text: str
    kind: Literal["local", "hf", "ms"]
    path: str
    subset: str | None = None
    take: int | None = None


def parse_spec(text: str, default_hub: Literal["hf", "ms"]) -> DatasetSpec:
    """Read the notation of a data set.  What is not on this machine and looks like a path stays `local`, so that
    opening it says which file is missing.

    Raises:
        ConfigError: not in the notation.
    """
    if _exists(text):
        return DatasetSpec(text, "local", text)
    path, take, subset = text, None, None
    if marked := re.fullmatch(r"(.*)#(\d*)", text, re.DOTALL):
        path = marked[1]
        if not marked[2] or int(marked[2]) == 0:
            raise ConfigError("#N needs a number of rows above 0", where=text, fix="Write for example data.jsonl#500")
        take = int(marked[2])
    hub = None
    if not _exists(path):
        if path.startswith(("hf::", "ms::")):
            hub, path = path[:2], path[4:]
        if ":" in path:
            path, _, subset = path.rpartition(":")
    if not path or subset == "":
        raise ConfigError("not a data set", where=text, fix="Write [hf::|ms::]path-or-hub-id[:subset][#N]")
    if hub == "hf" or hub == "ms":
        return DatasetSpec(text, hub, path, subset, take)
    local = _exists(path) or not _HUB_ID.fullmatch(path) or suffix_of(Path(path)) in SUFFIXES or path.startswith(".")
    return DatasetSpec(text, "local" if local else default_hub, path, subset, take)


def _exists(path: str) -> bool:
    # pathlib raises for names that are too long to exist, os.path does not
    return os.path.exists(os.path.expanduser(path))  # noqa: PTH110, PTH111


def open_rows(spec: DatasetSpec, config: DataConfig) -> Rows:
    """Open a data set for random access.  A folder is all its data files, in the order of their names.

    Raises:
        DataError: `missing_file`, `unreadable_file`, `empty_file`, `unknown_format`, `undecodable`, `no_data`,
            `hub_unavailable`, `no_train_split`; under `strict` also `not_utf8` and `byte_order_mark`.
        MissingExtra: a hub's package is not installed.
    """
    if spec.kind != "local":
        return tables.open_hub(spec.kind, spec.path, spec.subset, cache_root(config) / "hub", config.max_row_bytes)
    parts = [open_file(path, config) for path in files_of(spec)]
    return parts[0] if len(parts) == 1 else JoinedRows(spec.path, tuple(parts))


def drawn_rows(text: str, config: DataConfig, seed: int = 42) -> Rows:
    """The rows that a data set's notation names, those of `#N` drawn as for training.  Raises as `parse_spec` and
    `open_rows`."""
    spec = parse_spec(text, config.hub)
    rows = open_rows(spec, config)
    if spec.take is None:
        return rows
    return DrawnRows(text, rows, tuple(take_indices(len(rows), spec.take, seed).tolist()))


def stream_rows(spec: DatasetSpec, config: DataConfig) -> Iterator[Row]:
    """The rows of a data set in order, in one pass and without an index or a cache.

    `spec.take` is not applied.

    Raises:
        DataError, MissingExtra: as `open_rows`, when the first row is asked for.
    """
    if spec.kind != "local":
        yield from tables.stream_hub(spec.kind, spec.path, spec.subset)
        return
    for path in files_of(spec):
        yield from _stream_file(path, config)


def open_file(path: Path, config: DataConfig) -> Rows:
    """Open one data file for random access.  Raises as `open_rows`."""
    if kind_of(path) in textfile.SUFFIXES:
        return open_text(path, str(path), config)
    return tables.open_table(path, str(path), cache_root(config) / "tables", config.max_row_bytes)


def _stream_file(path: Path, config: DataConfig) -> Iterator[Row]:
    if kind_of(path) in textfile.SUFFIXES:
        return stream_text(describe(path, str(path), config))
    return tables.stream_table(path, str(path), config.max_row_bytes)


def files_of(spec: DatasetSpec) -> list[Path]:
    """The files a local data set is made of.

    Raises:
        DataError: `missing_file`, `unknown_format`, `no_data`.
    """
    path = Path(os.path.expanduser(spec.path))  # noqa: PTH111  (an unknown ~user stays as it is)
    if not _exists(spec.path):
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, names)
        fix = f"Did you mean {str(path.parent / near)!r}?" if near else f"Looked in {path.parent.absolute()}"
        raise DataError("no such file or folder", where=spec.path, fix=fix, code="missing_file")
    if path.is_dir():
        return _folder(path, spec)
    if spec.subset is not None:
        raise DataError(f"a file has no subset {spec.subset!r}", where=spec.path, code="missing_file")
    if kind_of(path) not in SUFFIXES or (path.suffix in (".gz", ".zst") and kind_of(path) in tables.SUFFIXES):
        fix = f"Known: {' '.join(SUFFIXES)}; text formats also as .gz and .zst"
        raise DataError("not a known data format", where=spec.path, fix=fix, code="unknown_format")
    return [path]


def _folder(folder: Path, spec: DatasetSpec) -> list[Path]:
    """Data files below a folder.  Plain text counts only where there is nothing else: it is most likely a note."""
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts) or _ABOUT_DATA.fullmatch(path.name)
        if path.is_file() and not hidden and suffix_of(path) in SUFFIXES and path.stat().st_size > 0:
            found.append(path)
    if spec.subset is not None:
        found = [path for path in found if _in_subset(path.relative_to(folder), spec.subset)]
    structured = [path for path in found if suffix_of(path) not in (".txt", ".md")]
    if not found:
        what = f"no data files of subset {spec.subset!r}" if spec.subset else "no data files in this folder"
        raise DataError(what, where=spec.path, fix=f"Known: {' '.join(SUFFIXES)}", code="no_data")
    return structured or found


def _in_subset(path: Path, subset: str) -> bool:
    """Whether a file belongs to a subset: it lies in a folder of that name, or its name begins with it."""
    return subset in path.parts[:-1] or re.match(re.escape(subset) + r"[._-]", path.name) is not None


@dataclass(frozen=True)
class JoinedRows:
    """Several sets of rows, one after the other."""

    name: str
    parts: tuple[Rows, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the parts' fingerprints, in order."""
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part) for part in self.parts))


@dataclass(frozen=True)
class DrawnRows:
    """Some rows of a set, in an order of their own; a row may be there more than once."""

    name: str
    rows: Rows
    indices: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the set's fingerprint and of what was drawn."""
        return hashlib.sha256(f"{self.rows.fingerprint} {self.indices}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Row:
        return self.rows[self.indices[index]]
