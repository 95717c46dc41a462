"""Results that are whole or absent: written beside their place, hashed into MANIFEST.json, and renamed."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from luthier.base.errors import ConfigError
from luthier.base.rundir import fsync_dir, storage_error
from luthier.base.sealed import seal


def refuse_existing(folder: Path) -> None:
    """Nothing is ever written over.

    Raises:
        ConfigError: code `exists`.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigError(
            "there is something here already, and nothing is written over",
            where=str(folder),
            code="exists",
            fix="Give another --output_dir, or remove it",
        )


@contextmanager
def staged(folder: Path) -> Generator[Path]:
    """A folder to write into, which takes the name `folder` once the block has ended without an error.

    Raises:
        ConfigError: `folder` is there already.
        RunError: `disk_full` or `cannot_write`; then nothing of the kind is left behind.
    """
    refuse_existing(folder)
    staging = folder.with_name(f".{folder.name}.staging")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of an export that was killed
        staging.mkdir(parents=True)
        yield staging
        seal(staging)
        if folder.is_dir():
            folder.rmdir()
        staging.rename(folder)
        fsync_dir(folder.parent)
    except (OSError, SafetensorError) as error:
        raise storage_error(_as_os_error(error), folder) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder, or of a single file."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(path.stat().st_size for pattern in ("*.safetensors", "*.gguf") for path in folder.glob(pattern))


def _as_os_error(error: OSError | SafetensorError) -> OSError:
    """safetensors reports a full disk in words of its own."""
    if isinstance(error, OSError):
        return error
    full = "No space left" in str(error) or "os error 28" in str(error)
    return OSError(28 if full else None, str(error))
