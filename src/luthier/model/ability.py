"""What a device can do, and the words for what it cannot: the plain path is taken then, and the user is told."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from luthier.model.pointwise import Pointwise

_KERNELS, _FLOAT8 = (8, 0), (8, 9)
"""Compute capabilities from which Triton is supported, and from which 8-bit floating point is multiplied."""


def kernels(device: torch.device) -> Pointwise | str:
    """The pointwise functions as GPU kernels, or why they cannot be had."""
    if device.type != "cuda":
        return f"there are no kernels for a {device.type}"
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.cuda.get_device_capability(device) < _KERNELS:
        return f"{torch.cuda.get_device_name(device)} is older than the kernels"
    from luthier.model.kernels import Fused

    return Fused()


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is fast there, rather than emulated."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def has_float8(device: torch.device) -> bool:
    """Whether 8-bit floating point is multiplied there.  A CPU multiplies the rounded numbers, for tests."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= _FLOAT8


def slow_there(dtype: torch.dtype, quant: str | None, device: torch.device) -> str | None:
    """What to tell a user whose settings work on the device, but not as they are meant to."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if dtype == torch.bfloat16 and not has_bfloat16(device):
        return f"{name} emulates bfloat16, which is slow: --torch_dtype float32 is faster there"
    if quant == "fp8" and not has_float8(device):
        return f"{name} does not multiply 8-bit floating point: --quant_method fp8 saves memory there, but no time"
    return None
