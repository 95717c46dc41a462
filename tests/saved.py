"""Hashes of what a run saved, to compare runs bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from luthier.engine.checkpoint import read


def digest(named: Mapping[str, Tensor]) -> str:
    """sha256 over names and bytes of tensors, in the order of their names."""
    hashed = hashlib.sha256()
    for name in sorted(named):
        tensor = named[name].detach().cpu().contiguous().reshape(-1)
        hashed.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def hashes(checkpoint: Path) -> tuple[str, str]:
    """Of its trained weights and of its optimizer."""
    _, tensors = read(checkpoint)
    return digest(tensors.trained), digest(tensors.optimizer)
