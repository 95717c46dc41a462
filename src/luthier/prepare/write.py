"""Writing rows: JSON lines or Parquet, whole or not at all, and never over what is being read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from luthier.base.errors import ConfigError
from luthier.base.rundir import fsync_dir, storage_error, usual_mode
from luthier.prepare.origins import OriginWriter
from luthier.prepare.parcel import Parcel
from luthier.prepare.table import write_parquet

SUFFIXES = (".jsonl", ".parquet")


def target(name: str, flag: str, suffixes: Sequence[str]) -> Path:
    """The path a user named for something to be written; the folder it lies in is made.

    Raises:
        ConfigError: another suffix, or a place that cannot be written.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() not in suffixes:
        fix = f"End the name in {' or '.join(suffixes)}"
        raise ConfigError(f"cannot tell what to write as {name!r}", where=flag, fix=fix, code="unknown_format")
    if path.is_dir():
        raise ConfigError("this is a folder", where=f"{flag} {name}", fix="Name a file in it", code="bad_path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"no folder can be made there: {error.strerror}"
        raise ConfigError(what, where=f"{flag} {name}", fix="Choose another place", code="bad_path") from error
    if not os.access(path.parent, os.W_OK):
        raise ConfigError("the folder cannot be written", where=f"{flag} {name}", code="bad_path")
    return path


def part_paths(output: str, parts: Sequence[str]) -> dict[str, Path]:
    """Where each part goes: `x.jsonl` becomes `x.train.jsonl` ...; a folder takes `train.jsonl` ...

    Raises:
        ConfigError: as `target`.
    """
    if parts == ("",):
        return {"": target(output, "--output", SUFFIXES)}
    path = Path(output).expanduser()
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return {part: target(str(path.with_suffix(f".{part}{path.suffix}")), "--output", SUFFIXES) for part in parts}
    return {part: target(str(path / f"{part}.jsonl"), "--output", SUFFIXES) for part in parts}


def refuse_overwriting(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Make sure that nothing read is written, also by another name, and nothing is written twice.

    Raises:
        ConfigError: code `would_overwrite`.
    """
    read = {_identity(path): path for path in inputs}
    written: dict[tuple[int, int] | Path, Path] = {}
    for path in outputs:
        known = _identity(path)
        if known in read:
            what = f"this would overwrite the input {read[known]}"
            raise ConfigError(what, where=str(path), fix="Choose another name", code="would_overwrite")
        if known in written:
            raise ConfigError("this name is given twice", where=str(path), fix="Give two names", code="would_overwrite")
        written[known] = path


def _identity(path: Path) -> tuple[int, int] | Path:
    """What makes two names mean one file: device and inode, or the resolved path where there is none yet."""
    try:
        found = path.stat()
    except OSError:
        return path.resolve()
    return found.st_dev, found.st_ino


class Writer:
    """Files under way, by the name of their part; they get their names when all of them are whole.

    Use as a context: leaving it with an error throws away what was written.
    """

    def __init__(self, parts: Sequence[str], paths: Mapping[str, Path], *, origins: bool = False):
        """
        Args:
            parts: the outputs there are.
            paths: those that are written, and where.
            origins: also write where each row came from, beside the file; see `origins.py`.
        """
        self.paths = dict(paths)
        self.rows = dict.fromkeys(parts, 0)
        """Rows of each part, whether they are written or not."""
        self._staged: dict[str, Path] = {}
        self._streams = {part: self._open(part, path) for part, path in paths.items()}
        self._origins = {part: OriginWriter(path) for part, path in paths.items()} if origins else {}

    def _open(self, part: str, path: Path) -> BinaryIO:
        try:
            handle, staged = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            self._discard()
            raise storage_error(error, path) from error
        self._staged[part] = Path(staged)
        return os.fdopen(handle, "wb", buffering=2**20)

    def write(self, parcel: Parcel) -> None:
        """Add a parcel's rows to the files they go to; rows of parts nobody asked for are let go.

        Raises:
            RunError: code `disk_full` or `cannot_write`.
        """
        for part, lines in parcel.lines.items():
            if part in self.rows:
                self.rows[part] += parcel.written[part]
            if part in self._streams:
                try:
                    self._streams[part].write(lines)
                except OSError as error:
                    raise storage_error(error, self.paths[part]) from error
            if part in self._origins:
                self._origins[part].write(parcel.placed[part])

    def publish(self) -> None:
        """Finish every file and give it its name.

        Raises:
            RunError: code `disk_full` or `cannot_write`; no file has been touched then but those already named.
        """
        for origins in self._origins.values():
            origins.close()
        for part, stream in self._streams.items():
            path, staged = self.paths[part], self._staged[part]
            try:
                stream.close()
                _settle(staged, path)
            except OSError as error:
                raise storage_error(error, path) from error
        for part, path in self.paths.items():
            self._staged.pop(part).replace(path)
            fsync_dir(path.parent)

    def _discard(self) -> None:
        for stream in getattr(self, "_streams", {}).values():
            stream.close()
        for origins in getattr(self, "_origins", {}).values():
            origins.discard()
        for staged in self._staged.values():
            staged.unlink(missing_ok=True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()


def write_rows(rows: Path, path: Path) -> None:
    """Copy a file of JSON lines to where a user wants it, as Parquet when its name says so.

    Raises:
        RunError: code `disk_full` or `cannot_write`; an earlier file of that name is untouched.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as made:
            staged = Path(made.name)
        try:
            shutil.copyfile(rows, staged)
            _finish(staged, path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def _finish(staged: Path, path: Path) -> None:
    """Make a staged file what its name will say, and give it the name."""
    _settle(staged, path)
    staged.replace(path)
    fsync_dir(path.parent)


def _settle(staged: Path, path: Path) -> None:
    if path.suffix.lower() == ".parquet":
        write_parquet(staged)
    with staged.open("rb+") as whole:
        os.fchmod(whole.fileno(), usual_mode())
        os.fsync(whole.fileno())
