"""Sizes of memory and files, and shares, for people."""

from __future__ import annotations


def told(size: int) -> str:
    """Bytes in GiB, or in MiB where they are fewer."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def share(part: float, whole: float) -> str:
    """In percent; a little is told apart from nothing: of a text that has one vector or class, one token is trained."""
    return "<1%" if 0 < part < 0.01 * whole else f"{part / (whole or 1):.0%}"
