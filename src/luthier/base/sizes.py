"""Sizes of memory and files, for people."""

from __future__ import annotations


def told(size: int) -> str:
    """Bytes in GiB, or in MiB where they are fewer."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
