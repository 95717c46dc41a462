"""The devices one run trains on: the few sums they exchange, the memory they have taken."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from luthier.base.errors import together
from luthier.model.device import device_of

BUCKET = 16 * 2**20
"""Gradient elements summed in one collective."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """This process among all of them.  With one process every sum is the value itself."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def seed(self, number: int) -> None:
        """Begin random numbers anew, on the host and on this process's device.

        `torch.manual_seed` does so on all kinds of devices, in 0.7 ms.
        """
        if self.device.type not in ("cpu", "cuda"):
            torch.manual_seed(number)
            return
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum named scalars over all processes, in float64 and one collective."""
        if not values:
            return {}
        stacked = torch.stack([value.detach().to(self.device, torch.float64) for value in values.values()])
        if self.world > 1:
            with together():
                dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum every moving parameter's gradient over all processes, in place and in a fixed order."""
        if self.world == 1:
            return
        bucket: list[Tensor] = []
        size = 0
        for parameter in parameters:
            if parameter.grad is None:
                continue  # at rest in this step, on every process
            if bucket and (size + parameter.grad.numel() > BUCKET or bucket[0].dtype != parameter.grad.dtype):
                _sum_flat(bucket)
                bucket, size = [], 0
            bucket.append(parameter.grad)
            size += parameter.grad.numel()
        if bucket:
            _sum_flat(bucket)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.world == 1:
            return flag
        return bool(self.sum({"flag": torch.tensor(float(flag))})["flag"] > 0)

    def share(self, text: str) -> str:
        """The leading process's text, on every process."""
        if self.world == 1:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        size = torch.tensor([len(data)], device=self.device)
        with together():
            dist.broadcast(size, src=0)
            if not self.leads:
                data = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
            dist.broadcast(data, src=0)
        return bytes(data.tolist()).decode()

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one process's after the other's.  [n, ...] -> [N, ...] on the CPU"""
        if self.world == 1:
            return rows.cpu()
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world)]
        mine = rows.to(self.device)
        with together():
            dist.all_gather(sizes, torch.tensor([len(rows)], device=self.device))
            most = max(int(size) for size in sizes)
            room = mine.new_zeros(most, *mine.shape[1:])
            room[: len(mine)] = mine
            everyone = [torch.empty_like(room) for _ in range(self.world)]
            dist.all_gather(everyone, room)
        return torch.cat([part[: int(size)] for part, size in zip(everyone, sizes, strict=True)]).cpu()

    @contextmanager
    def leader_first(self) -> Generator[None]:
        """The leading process goes through the block alone; then the others do, and find what it has made."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            with together():
                dist.barrier()


def peak_memory(device: torch.device) -> float:
    """Most memory held so far, GiB: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        # What `max_memory_allocated` gives, which puts all statistics into one table first.
        held = torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]["peak"]
        return held / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _sum_flat(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    with together():
        dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@contextmanager
def open_mesh(device: str) -> Generator[Mesh]:
    """Join the processes torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or stand alone.  May be used inside itself.

    Args:
        device: as `model.device` knows them.

    Raises:
        ConfigError: there is no such device here, or there are fewer than processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    here = device_of(device, local if world > 1 else None)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if world == 1:
        yield Mesh(here)
        return
    if dist.is_initialized():  # several runs in a row keep to one meeting
        yield Mesh(here, rank, world)
        return
    dist.init_process_group("gloo" if here.type == "cpu" else "nccl", timeout=timedelta(minutes=30))
    try:
        yield Mesh(here, rank, world)
    finally:
        dist.destroy_process_group()
