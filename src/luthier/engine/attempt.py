"""Passes that may run out of memory, made so that all processes stay in step.

A process without room throws the failed pass away and makes it, and those that are left, with empty batches instead.
So it takes part in every collective the others wait in, and tells them at the end, in a sum they exchange anyway.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from luthier.base.sizes import told
from luthier.data.batch import Batch, collate
from luthier.model.load import Model

T = TypeVar("T")


class NoRoom(Exception):
    """A step or an evaluation did not fit into the memory of one of the processes; raised on all of them together."""


class Attempt:
    """The passes of one step or one evaluation, as far as this process has room for them."""

    def __init__(self, model: Model):
        self._model = model
        self._why = ""

    @property
    def failed(self) -> bool:
        """Whether this process has run out of memory, so that its numbers mean nothing."""
        return self._why != ""

    def batches(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches to go on with: empty ones after a failure."""
        return [collate([], []).to(self._model.device)] * len(batches) if self.failed else batches

    def run(self, work: Callable[..., T], *batches: Batch) -> T:
        """Do some work on batches, or the same work on empty ones where there is no room.

        Raises:
            torch.OutOfMemoryError: there is no room for empty batches either.
            DoesNotFit: see `Sharded.begin_again`.
        """
        sharded = self._model.sharded
        if sharded is not None:
            sharded.begin()
        if not self.failed:
            try:
                return work(*batches)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._why = in_words(error)
            # Until here the traceback has held the failed pass with all its activations.
            release()
            if sharded is not None:
                sharded.begin_again(self._why)
        return work(*self.batches(batches))

    def agree(self, failures: float) -> None:
        """Give up where any process has failed.  Raises NoRoom."""
        if failures:
            raise NoRoom(self._why or "another process has no room")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has no room left.  For main memory torch has words, but no class."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def in_words(error: RuntimeError) -> str:
    """What a device without room says of it, without where in its library it was noticed."""
    asked = re.search(r"you tried to allocate (\d+) bytes", str(error))
    return f"{told(int(asked[1]))} more were asked for" if asked else str(error).split(". ")[0] or "out of memory"


def release() -> None:
    """Give back memory that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
