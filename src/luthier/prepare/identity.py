"""What makes two rows identical: a 128-bit hash of the whole row or of some of its columns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import orjson

from luthier.base.records import Json
from luthier.prepare.parcel import Batch, Parcel
from luthier.prepare.view import column


@dataclass(frozen=True)
class RowKeys:
    """Work that gives every row a key, uint64 [rows, 2], equal for rows with equal values.

    The order of the columns does not count, nor how numbers and characters were escaped.

    Args:
        on: columns that count; none are all.
    """

    on: tuple[str, ...] = ()

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        if self.on:
            parts = [self._part([column(item.value, name) for name in self.on]) for item in batch.items]
        else:
            parts = [self._part(item.value) for item in batch.items]
        parcel.columns["key"] = np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)
        return parcel

    def _part(self, value: Json) -> bytes:
        return key_of(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def key_of(data: bytes) -> bytes:
    """16 bytes that stand for these bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()
