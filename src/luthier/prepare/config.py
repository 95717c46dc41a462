"""Settings that every verb of the workshop shares: what is read, what is written, and on how many cores."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.base.config import Config, Named
from luthier.data.config import BadRows, DataConfig


class ReadConfig(Config):
    """How rows are read and on what they are worked."""

    columns: dict[str, str] = {}
    """Rename columns before anything else: {"their name": "our name"}."""
    hub: Literal["hf", "ms"] = "hf"
    """Hub for data-set ids without a prefix: Hugging Face or ModelScope."""
    bad_rows: BadRows = "fix"
    """A row that cannot be read or contradicts its shape: 'strict' stops at the first one, 'drop' leaves both kinds
    out, 'fix' leaves out what cannot be read and keeps the others, naming their faults in the report."""
    max_row_bytes: int = Field(default=16 * 2**20, ge=1024)
    """A longer row is rejected before it is parsed."""
    min_rows: int = Field(default=1, ge=0)
    """Refuse an input with fewer usable rows."""
    seed: int = Field(default=42, ge=0)
    """Seed of everything that is drawn."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that work on rows. Unset: one per core, or none for small inputs. The result is the same."""
    runner: Literal["native", "ray"] = "native"
    """Where they run: on this machine, or on a Ray cluster that sees the same files."""
    ray_address: str | None = None
    """Address of the Ray cluster. Unset: $RAY_ADDRESS, or a cluster of this machine alone."""
    cache_dir: Named | None = None
    """Where indexes and the steps of recipes are kept. Unset: $LUTHIER_CACHE or ~/.cache/luthier."""

    def data(self) -> DataConfig:
        """The same wishes as the foundation's readers take them."""
        return DataConfig(
            columns=self.columns,
            hub=self.hub,
            bad_rows=self.bad_rows,
            max_row_bytes=self.max_row_bytes,
            cache_dir=self.cache_dir,
        )


class CommandConfig(ReadConfig):
    """A verb on the command line: its own settings, and these."""

    inputs: tuple[Named, ...] = ()
    """Data sets: [hf::|ms::]path-or-hub-id[:subset][#N]; they may also come first, without a flag."""
    output: Named | None = None
    """File to write: .jsonl or .parquet."""
    report: Named | None = None
    """JSON file for the report; a page for people is written beside it, with the suffix .html."""
    removed: Named | None = None
    """Also write every row that was taken out, and why, to this file (.jsonl)."""


class VerbConfig(Config):
    """Root of every verb's own settings."""
