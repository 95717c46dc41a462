"""What makes two rows identical: a 128-bit hash of the whole row or of some of its columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from luthier.base.records import Json
from luthier.prepare.arrays import numpy_of
from luthier.prepare.engine import series
from luthier.prepare.parcel import Batch, Parcel, packed
from luthier.prepare.view import column

_OTHER_SEED = 0x9E3779B97F4A7C15


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
        values: list[Json] = [item.value for item in batch.items]
        if self.on:
            values = [[column(item.value, name) for name in self.on] for item in batch.items]
        parcel.columns["key"] = keys_of([packed(value, orjson.OPT_SORT_KEYS) for value in values])
        return parcel


def keys_of(texts: Sequence[str] | Sequence[bytes]) -> NDArray[np.uint64]:
    """128 bits for each text, uint64 [rows, 2]: xxHash3 with two seeds, as Daft computes it."""
    if not texts:
        return np.empty((0, 2), np.uint64)
    made = series(texts)
    halves = (made.hash(), made.hash(seed=series(np.array([_OTHER_SEED], np.uint64))))
    return np.stack([numpy_of(half.to_arrow()) for half in halves], axis=1)


def key_of(data: bytes) -> bytes:
    """16 bytes that stand for these bytes, the same on every machine and in every version."""
    return hashlib.blake2b(data, digest_size=16).digest()
