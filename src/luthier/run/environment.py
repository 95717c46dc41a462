"""Where a run took place: env.json and memory.json."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

import luthier
from luthier.base.records import Json
from luthier.engine.mesh import peak_memory

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "datasets", "numpy", "bitsandbytes", "hqq")
GIB = 2**30


def environment(seed: int, device: torch.device) -> dict[str, Json]:
    """What a run's numbers depend on besides its config; no environment variables, no names of people or machines."""
    packages: dict[str, Json] = {name: found for name in PACKAGES if (found := _installed(name))}
    packages["torch"] = str(torch.__version__)  # its own name for its version says which CUDA it was built for
    return {
        "luthier": luthier.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "device": describe_device(device),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_gib": round(psutil.virtual_memory().total / GIB, 1),
        "cuda": torch.version.cuda,
        "git": git_revision(Path.cwd()),
        "seed": seed,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def describe_device(device: torch.device) -> str:
    """`cpu`, or the GPU's name with its memory."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"


def measured_memory(device: torch.device, predicted_gib: float | None = None) -> dict[str, Json]:
    """Peak memory of this process so far, in GiB: resident, and on a GPU allocated, reserved, and as predicted."""
    measured: dict[str, Json] = {"resident_peak_gib": round(peak_memory(torch.device("cpu")), 3)}
    if device.type == "cuda":
        measured["gpu_allocated_peak_gib"] = round(peak_memory(device), 3)
        measured["gpu_reserved_peak_gib"] = round(torch.cuda.max_memory_reserved(device) / GIB, 3)
        measured["gpu_total_gib"] = round(torch.cuda.get_device_properties(device).total_memory / GIB, 3)
    predicted: dict[str, Json] = {} if predicted_gib is None else {"gpu_allocated_peak_gib": round(predicted_gib, 3)}
    return {"device": describe_device(device), "predicted": predicted, "measured": measured}


def git_revision(folder: Path) -> str | None:
    """The commit checked out around `folder`, with `+` when files differ from it; None outside a repository."""
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision:
        return None
    return revision + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git here, no repository, or one that takes too long
        return None
    return done.stdout.strip()


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
