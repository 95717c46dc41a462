"""From the word for a device to the device, or to what is wrong with the word here."""

from __future__ import annotations

import torch

from luthier.base.errors import ConfigError


def device_of(named: str, local: int | None = None) -> torch.device:
    """The device of that name.

    Args:
        named: cpu, cuda, cuda:N, or auto (cuda when there is one).
        local: number of this process among those of its machine, each of which has a GPU of its own; None: it is alone.

    Raises:
        ConfigError: it is no device, or none that is here.
    """
    there = torch.cuda.is_available()
    kind, colon, number = ("cuda" if there else "cpu", "", "") if named == "auto" else named.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ConfigError(f"unknown device {named!r}", where="--device", fix="Use cpu, cuda or auto")
    if kind == "cpu":
        return torch.device("cpu")
    if not there:
        raise ConfigError("no CUDA device is visible", where="--device", fix="Run `luthier doctor`, or use cpu")
    count = torch.cuda.device_count()
    devices = f"{count} CUDA device{'s are' if count > 1 else ' is'} visible"
    if local is not None and local >= count:
        raise ConfigError(
            f"{devices}, which is too few for {local + 1} processes or more",
            where="--device",
            fix=f"Set NPROC_PER_NODE={count}, or look at CUDA_VISIBLE_DEVICES",
        )
    index = int(number or 0) if local is None else local
    if index >= count:
        raise ConfigError(f"{devices}, so there is no {named}", where="--device", fix="They are numbered from 0")
    return torch.device("cuda", index)
