"""Directories that can prove they are whole: every file listed in MANIFEST.json with its size and its hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from luthier.base.rundir import fsync_dir, storage_error, usual_mode

MANIFEST = "MANIFEST.json"

_AT_ONCE = 4
"""Files that are hashed at once: one thread reads a gigabyte in a second, and a checkpoint can have a hundred."""


@contextmanager
def published(folder: Path, staging: Path) -> Generator[dict[str, str]]:
    """In the block `staging` is filled; then it is sealed and takes the name `folder`, of nothing or an empty folder.

    What is given takes the hashes that the block knows of its files; see `seal`.

    Raises:
        RunError: `disk_full` or `cannot_write`; then nothing is left behind, and what was there before is untouched.
    """
    known: dict[str, str] = {}
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        staging.mkdir(parents=True)
        yield known
        seal(staging, known)
        staging.rename(folder)
        fsync_dir(folder.parent)
    except (OSError, SafetensorError) as error:
        raise storage_error(_as_os_error(error), folder) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def seal(folder: Path, known: Mapping[str, str] = {}) -> None:
    """List and hash every file, and make all of them survive a power cut and be read by whom other files are.

    Args:
        known: sha256 of files, by name, that whoever wrote them has computed on the way.

    Raises:
        OSError: a file cannot be read or brought to the disk.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    hashes = {**known, **_hashes(folder, [name for name in names if name not in known])}
    listed = {
        name: {"bytes": path.stat().st_size, "sha256": hashes[name]} for name, path in zip(names, files, strict=True)
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"version": 1, "files": listed}, indent=2), encoding="utf-8")
    for path in [*files, manifest]:
        with path.open("rb+") as file:
            os.fchmod(file.fileno(), usual_mode())
            os.fsync(file.fileno())
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        fsync_dir(path)


def verify(path: Path) -> str | None:
    """None when every file of a sealed directory is there with its recorded size and hash, else what is wrong."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "no readable MANIFEST.json"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
    hashes = _hashes(path, [*files])
    wrong = [name for name, expected in files.items() if hashes[name] != expected["sha256"]]
    return f"{wrong[0]} does not match its hash" if wrong else None


def set_aside(path: Path, fault: str) -> str:
    """Rename a broken directory out of the way; returns what to tell the user."""
    target = path.with_name(path.name + ".corrupt")
    if target.exists():
        shutil.rmtree(target)
    path.rename(target)
    return f"{path.name} is broken ({fault}); kept as {target.name}"


def _as_os_error(error: OSError | SafetensorError) -> OSError:
    """safetensors reports a full disk in words of its own."""
    if isinstance(error, OSError):
        return error
    full = "No space left" in str(error) or "os error 28" in str(error)
    return OSError(errno.ENOSPC if full else None, str(error))


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The sha256 of each file, by its name in the folder."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return dict(zip(names, threads.map(sha256_of, [folder / name for name in names]), strict=True))


def sha256_of(path: Path) -> str:
    """The hash of a file's content.  Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
