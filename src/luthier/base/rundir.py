"""The directory of one run: files that are whole or absent, rows that are appended, one trainer at a time.

<output_dir>/.lock                        held while a run of this output directory is alive
<output_dir>/v<N>-<YYYYmmdd-HHMMSS>/      one run
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

import orjson

from luthier.base.errors import ConfigError, RunError
from luthier.base.records import Json

Row = dict[str, Json]

_RUN_NAME = re.compile(r"v(\d+)-\d{8}-\d{6}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def storage_error(error: OSError, path: Path) -> RunError:
    """The run's error for a write that failed: code `disk_full` when there is no room, else `cannot_write`."""
    if error.errno in _FULL:
        return RunError("the disk is full", where=str(path), code="disk_full", fix="Free some space and resume")
    return RunError(f"cannot write: {error.strerror or error}", where=str(path), code="cannot_write")


def fsync_dir(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is seen either whole or not at all, also after a crash.

    Raises:
        RunError: code `disk_full` or `cannot_write`; an earlier file of that name is untouched.
    """
    staged: str | None = None
    try:
        handle, staged = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), usual_mode())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(staged).replace(path)
        fsync_dir(path.parent)
    except OSError as error:
        if staged is not None:
            Path(staged).unlink(missing_ok=True)
        raise storage_error(error, path) from error


def usual_mode() -> int:
    """Permissions that a new file has here; some libraries write theirs for the owner alone."""
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


class Lock:
    """An output directory held by this process, through flock on a file that names the holder.

    The kernel lets go when the process dies, so a file left behind never blocks.
    """

    _held: set[int] = set()

    def __init__(self, path: Path):
        """
        Raises:
            ConfigError: code `locked` when another trainer holds it.
            OSError: the file cannot be opened or written.
        """
        self.path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now().isoformat("T", "seconds"),
            }
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, orjson.dumps(holder), 0)
            os.fsync(self._handle)
        except BlockingIOError as error:
            holder = _holder(os.pread(self._handle, 4096, 0))
            os.close(self._handle)
            raise ConfigError(
                f"another trainer is writing here: {holder}",
                where=str(path.parent),
                code="locked",
                fix="Wait for it, stop it, or choose another --output_dir",
            ) from error
        except OSError:
            os.close(self._handle)
            raise
        Lock._held.add(self._handle)

    def release(self) -> None:
        """Let others in.  Releasing twice is harmless."""
        if self._handle in Lock._held:
            Lock._held.remove(self._handle)
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)

    @classmethod
    def forget_inherited(cls) -> None:
        """In a forked worker: close the copies, so that an orphaned worker does not hold the lock of a dead trainer."""
        for handle in cls._held:
            os.close(handle)
        cls._held.clear()


os.register_at_fork(after_in_child=Lock.forget_inherited)


def _holder(content: bytes) -> str:
    try:
        holder = orjson.loads(content)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (orjson.JSONDecodeError, KeyError, TypeError):  # it is being written at this moment
        return "a process that has just started"


class RunDir:
    """One run's directory.  `RunDir(path)` alone takes no lock: for readers and for ranks other than 0."""

    def __init__(self, path: Path, lock: Lock | None = None):
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, output_dir: Path) -> RunDir:
        """Make the next `v<N>-<time>` below `output_dir` and lock `output_dir`.

        Raises:
            ConfigError: the place cannot be written, or another trainer is at work there (code `locked`).
            RunError: code `disk_full`.
        """
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            lock = Lock(output_dir / ".lock")
        except OSError as error:
            raise _unusable(error, output_dir) from error
        try:
            return cls(_make_next(output_dir), lock)
        except OSError as error:
            lock.release()
            raise _unusable(error, output_dir) from error

    @classmethod
    def reopen(cls, path: Path) -> RunDir:
        """Lock and continue the run in `path`.

        Raises:
            ConfigError: there is no such directory, it cannot be written, or another trainer is at work there.
        """
        if not path.is_dir():
            raise ConfigError("there is no run to continue here", where=str(path), code="no_run")
        try:
            return cls(path, Lock(path.absolute().parent / ".lock"))
        except OSError as error:
            raise _unusable(error, path.parent) from error

    def file(self, name: str) -> Path:
        """The path of `name` in this run; directories above it are created."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write a UTF-8 file atomically.  Raises RunError."""
        path = self.file(name)
        write_atomic(path, text.encode())
        return path

    def write_json(self, name: str, value: Mapping[str, Json] | Sequence[Json]) -> Path:
        """Write an indented JSON file atomically; NaN and infinities become null.  Raises RunError."""
        path = self.file(name)
        write_atomic(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return path

    def append_json(self, name: str, row: Mapping[str, Json]) -> None:
        """Add one line in one write, so that a reader or a crash meets whole lines.  Raises RunError."""
        path = self.file(name)
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":  # a crash cut the last line off
                    line = b"\n" + line
                if os.write(handle, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(handle)
        except OSError as error:
            raise storage_error(error, path) from error

    def read_rows(self, name: str) -> list[Row]:
        """The rows of a file made by `append_json`, without lines cut off by a crash; none when it does not exist."""
        path = self.path / name
        return rows_of(path.read_bytes().splitlines()) if path.exists() else []

    def truncate_rows(self, name: str, keep: Callable[[Row], bool]) -> None:
        """Rewrite a row file atomically with the rows that `keep` accepts.  Raises RunError."""
        rows = self.read_rows(name)
        kept = [orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows if keep(row)]
        if rows:
            write_atomic(self.path / name, b"".join(kept))

    def close(self) -> None:
        """Release the lock.  A run that failed before it wrote anything leaves no directory."""
        if self._lock is not None:
            if self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()
            self._lock.release()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def rows_of(lines: Iterable[bytes | str]) -> list[Row]:
    """The objects in lines of JSON; lines that are none, as those cut off by a crash, are left out."""
    rows: list[Row] = []
    for line in lines:
        with suppress(orjson.JSONDecodeError):
            row = orjson.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def run_number(path: Path) -> int | None:
    """The N of a run directory's name `v<N>-<time>`; None for any other name."""
    found = _RUN_NAME.fullmatch(path.name)
    return int(found[1]) if found else None


def runs_in(output_dir: Path) -> list[Path]:
    """The run directories of an output directory, oldest first; none where it does not exist."""
    runs = [child for child in output_dir.glob("v*") if run_number(child)]
    return sorted(runs, key=lambda child: run_number(child) or 0)


def _make_next(output_dir: Path) -> Path:
    number = 1 + max((run_number(path) or 0 for path in output_dir.iterdir()), default=0)
    path = output_dir / f"v{number}-{datetime.now():%Y%m%d-%H%M%S}"
    path.mkdir()
    fsync_dir(output_dir)
    return path


def _unusable(error: OSError, output_dir: Path) -> ConfigError | RunError:
    if error.errno in _FULL:
        return storage_error(error, output_dir)
    reasons = {
        errno.EEXIST: "it is a file, not a directory",
        errno.ENOTDIR: "a parent of it is a file",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.ENOENT: "no directory can be made there",
        errno.ENOLCK: "the file system cannot lock files",
        errno.EOPNOTSUPP: "the file system cannot lock files",
    }
    why = reasons.get(error.errno or 0, error.strerror or str(error))
    return ConfigError(
        f"the output directory cannot be used: {why}",
        where=str(output_dir),
        code="bad_output_dir",
        fix="Choose another --output_dir",
    )
