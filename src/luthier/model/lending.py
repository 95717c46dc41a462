"""Saving what is spread over all processes: the leading one asks for tensors, the others lend their parts of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor
from torch.distributed.tensor import DTensor

from luthier.model.sharding import held, whole


class Processes(Protocol):
    """What is needed of `engine.mesh.Mesh`."""

    @property
    def leads(self) -> bool: ...
    def share(self, text: str) -> str: ...


Whole = Callable[[Tensor], Tensor]
"""Makes a whole tensor of one that may be spread over processes."""


@contextmanager
def lending(mesh: Processes, tensors: Iterable[Tensor]) -> Generator[Whole]:
    """In the block the leading process makes whole tensors of the given ones, in any order and as long as it likes.

    The others lend meanwhile: for them the block begins when the leading process has left its own, however it did.

    Args:
        tensors: all that may be asked for, in the same order on every process.
    """
    spread = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    if not spread:
        yield whole
        return
    if not mesh.leads:
        while number := mesh.share(""):
            whole(spread[int(number)])
        yield whole
        return
    # A state dict holds other objects over the same memory; the leading process has rows of every tensor.
    places = {held(tensor).data_ptr(): str(number) for number, tensor in enumerate(spread)}

    def ask(tensor: Tensor) -> Tensor:
        if isinstance(tensor, DTensor):
            mesh.share(places[held(tensor).data_ptr()])
        return whole(tensor)

    try:
        yield ask
    finally:
        mesh.share("")
