"""Results that are whole or absent: written beside their place, hashed into MANIFEST.json, and renamed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.base.sealed import published


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
    with published(folder, staging):
        yield staging


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder, or of a single file."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(path.stat().st_size for pattern in ("*.safetensors", "*.gguf") for path in folder.glob(pattern))
