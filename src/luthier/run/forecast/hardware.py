"""Devices that a training can be planned for without having them: their memory, and how fast they multiply.

Memory is what torch reports as a GPU's total, in GiB, which is less than is printed on the box: what the driver and
error correction keep is gone.  Rates are NVIDIA's own for dense products in bfloat16 with sums in float32 (data sheets
and architecture papers of each card), without sparsity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch

from luthier.base.config import nearest
from luthier.base.errors import ConfigError
from luthier.model import ability

GIB = 2**30

CONTEXT = 0.6
"""GiB that a process's CUDA context and its loaded kernels take of a GPU before torch allocates anything."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a training is to run."""

    name: str
    gib: float
    """Memory in all."""
    gpu: bool = True
    tflops: float | None = None
    """Published rate of dense bfloat16 products; None where nobody publishes one."""
    bfloat16: bool = True
    kernels: bool = True
    """Whether Luthier's own layers run there (compute capability 8.0 and newer)."""
    free_gib: float | None = None
    """What a process may hold, where it has been asked for."""

    @property
    def available(self) -> int:
        """Bytes that a process may hold, by plan."""
        if self.free_gib is not None:
            return int(self.free_gib * GIB)
        return int((self.gib - CONTEXT * self.gpu) * GIB)

    @property
    def kind(self) -> torch.device:
        """cpu or cuda."""
        return torch.device("cuda" if self.gpu else "cpu")


_OLD = {"bfloat16": False, "kernels": False}

DEVICES = {
    device.name: device
    for device in (
        Device("H200", 139.8, tflops=989.4),
        Device("H100", 79.1, tflops=989.4),
        Device("H100-PCIe", 79.1, tflops=756.5),
        Device("A100-80", 79.1, tflops=312.0),
        Device("A100-40", 39.4, tflops=312.0),
        Device("L40S", 44.4, tflops=362.1),
        Device("L4", 22.0, tflops=121.0),
        Device("A10", 22.1, tflops=125.0),
        Device("A6000", 47.5, tflops=154.8),
        Device("RTX-6000-Ada", 47.4, tflops=364.2),
        Device("5090", 31.4, tflops=209.5),
        Device("4090", 23.6, tflops=165.2),
        Device("3090", 23.6, tflops=71.0),
        Device("V100-32", 31.7, **_OLD),
        Device("V100-16", 15.8, **_OLD),
        Device("T4", 14.6, **_OLD),
    )
}
"""By name."""

_ALIASES = {
    "a100": "A100-80",
    "a100-80gb": "A100-80",
    "a100-40gb": "A100-40",
    "v100": "V100-32",
    "rtx6000ada": "RTX-6000-Ada",
}


def device_named(name: str, memory: float | None) -> Device:
    """The device of a plan: one of the table, this machine's (auto, cuda, cpu), or any of so much memory.

    Args:
        memory: GiB, instead of what the device has.

    Raises:
        ConfigError: neither known nor here.
    """
    known = _known(name)
    if known is None and memory is not None and name == "auto" and not torch.cuda.is_available():
        known = Device(f"a GPU of {memory:g} GiB", memory)
    if known is None:
        known = _here(name)
    return known if memory is None else replace(known, gib=memory, free_gib=None)


def _known(name: str) -> Device | None:
    bare = name.lower().removeprefix("nvidia").removeprefix("rtx").strip(" -_")
    found = {key.lower(): device for key, device in DEVICES.items()}
    return found.get(name.lower()) or found.get(_ALIASES.get(bare, bare).lower())


def _here(name: str) -> Device:
    kind = name.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        hint = nearest(name, [*DEVICES, "cpu", "cuda", "auto"])
        raise ConfigError(
            f"no device of this name is known: {name!r}",
            where="--device",
            code="unknown_device",
            fix=(f"Did you mean {hint}? " if hint else "")
            + f"Known are {', '.join(DEVICES)}, cpu and cuda; any other GPU by --memory GIB",
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "no CUDA device is visible here",
            where="--device cuda",
            fix=f"Name the one that will train: --device {' | '.join([*DEVICES][:4])} ..., or --memory GIB",
        )
    if kind == "cpu" or not torch.cuda.is_available():
        memory = psutil.virtual_memory()
        return Device(
            "cpu", memory.total / GIB, gpu=False, kernels=False, bfloat16=False, free_gib=memory.available / GIB
        )
    device = torch.device(name if ":" in name else "cuda:0")
    free, total = torch.cuda.mem_get_info(device)
    title = torch.cuda.get_device_name(device)
    published = next((known.tflops for key, known in DEVICES.items() if key.split("-")[0] in title), None)
    return Device(
        title,
        total / GIB,
        tflops=published,
        bfloat16=ability.has_bfloat16(device),
        kernels=not isinstance(ability.kernels(device), str),
        free_gib=free / GIB,
    )
