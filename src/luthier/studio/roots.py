"""What the pages may read: files below the folders that the user gave, found by relative names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.base.rundir import run_number

_SKIPPED = {"node_modules", "__pycache__", "checkpoints", "tensorboard", "site-packages"}
_DEPTH = 7
"""How deep below a root something is looked for."""
_LOOKED_AT = 20_000
"""Folders that one search opens at most, so that a root as large as a disk does not hold up a page."""
_PREFIX = re.compile(r"^(?:hf::|ms::)|#\d+$")
_NAMED = re.compile(r"^[A-Za-z0-9_.-]+=")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a folder."""

    path: Path
    is_dir: bool
    size: int


class Roots:
    """The folders that the pages may read.

    Raises:
        ConfigError: one is no folder.
    """

    def __init__(self, folders: Sequence[str]):
        self.folders = tuple(Path(folder).expanduser().resolve() for folder in folders)
        for given, folder in zip(folders, self.folders, strict=True):
            if not folder.is_dir():
                raise ConfigError("no such folder", where=f"--root {given}", code="bad_root")

    @property
    def first(self) -> Path:
        """Where commands are started, and what relative names are below."""
        return self.folders[0]

    def find(self, named: str) -> Path:
        """The file or folder of a name, relative to the first root or absolute.

        Raises:
            ConfigError: it lies outside, also by way of `..` or a link; or it does not exist.
        """
        path = Path(os.path.realpath(self.first / Path(named).expanduser()))
        if not self.holds(path):
            raise ConfigError(
                "this lies outside of the folders that the Studio may read",
                where=named,
                fix="Start it with --root and a folder that holds it",
                code="outside",
            )
        if not path.exists():
            raise ConfigError("no such file or folder", where=named, code="missing")
        return path

    def find_run(self, named: str) -> Path:
        """The directory of a run by its name.

        Raises:
            ConfigError: as `find`; or it is none (`no_run`).
        """
        path = self.find(named)
        if not path.is_dir() or (run_number(path) is None and not (path / "config.yaml").exists()):
            raise ConfigError("this is no run's directory", where=named, code="no_run")
        return path

    def holds(self, path: Path) -> bool:
        """Whether a resolved path lies below a root."""
        return any(path.is_relative_to(folder) for folder in self.folders)

    def name(self, path: Path) -> str:
        """How a path is written on a page and in a command: relative to the first root where it lies below it."""
        name = str(path.relative_to(self.first)) if path.is_relative_to(self.first) else str(path)
        return f"./{name}" if name.startswith("-") else name  # it must not be taken for a flag

    def refuse_outside(self, words: Sequence[str]) -> None:
        """Refuse words of a command that are paths to the outside; other words mean something else.

        Raises:
            ConfigError: naming the word.
        """
        for word in words:
            text = _NAMED.sub("", _PREFIX.sub("", word))
            looks = text.startswith(("/", "~")) or ".." in Path(text).parts
            path = Path(os.path.realpath(self.first / Path(text).expanduser())) if text and len(text) < 1024 else None
            if path is not None and (looks or path.exists()) and not self.holds(path):
                self.find(text)

    def listing(self, folder: Path) -> list[Entry]:
        """What lies in a folder: folders first, hidden names and links to the outside left out.

        Raises:
            ConfigError: it cannot be read.
        """
        entries: list[Entry] = []
        try:
            for child in folder.iterdir():
                if child.name.startswith(".") or not self.holds(child.resolve()) or not child.exists():
                    continue
                is_dir = child.is_dir()
                entries.append(Entry(child, is_dir, 0 if is_dir else child.stat().st_size))
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", where=str(folder), code="bad_path") from error
        return sorted(entries, key=lambda entry: (not entry.is_dir, entry.path.name.lower()))

    def runs(self) -> list[Path]:
        """Every run directory."""
        return self._where(lambda folder, files: run_number(folder) is not None)

    def models(self) -> list[Path]:
        """Every folder that holds a model or an adapter, outside of runs."""
        marks = {"adapter_config.json", "config.json"}
        return self._where(lambda folder, files: run_number(folder) is None and bool(marks & set(files)))

    def reports(self) -> list[Path]:
        """Reports of evaluations, comparisons and of the workshop, outside of runs."""
        return [
            folder / name
            for folder, names in self._walk()
            if run_number(folder) is None
            for name in names
            if name == "report.md" or (name.endswith(".html") and f"{name[:-5]}.json" in names)
        ]

    def _where(self, wanted: Callable[[Path, list[str]], bool]) -> list[Path]:
        return [folder for folder, files in self._walk() if wanted(folder, files)]

    def _walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Folders with the names of their files; hidden ones and links are not followed."""
        left = _LOOKED_AT
        for root in self.folders:
            for place, folders, files in os.walk(root):
                folder = Path(place)
                deep = len(folder.relative_to(root).parts) >= _DEPTH
                folders[:] = [] if deep else sorted(n for n in folders if n not in _SKIPPED and n[0] != ".")
                yield folder, files
                left -= 1
                if left <= 0:
                    return
