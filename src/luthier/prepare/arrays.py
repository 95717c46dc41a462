"""Texts and numbers as Arrow arrays, the form in which RE2 and Daft take them and give them back.

They are made of their buffers: pyarrow's own ways between Python and Arrow first ask pandas, where it is installed,
whether a value is one of its own, and importing pandas takes as long as importing Luthier.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def arrow_of(values: Sequence[str] | Sequence[bytes] | NDArray[np.uint64]) -> pa.Array[Any]:
    """Values as an array of Arrow's: large_string, large_binary or uint64.

    Raises:
        UnicodeEncodeError: a lone surrogate.
    """
    if isinstance(values, np.ndarray):
        return pa.Array.from_buffers(pa.uint64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
    kind: pa.DataType = pa.large_string()
    if values and isinstance(values[0], str):
        held = [text.encode() for text in cast("Sequence[str]", values)]
    else:
        kind, held = (pa.large_binary() if values else kind), cast("Sequence[bytes]", values)
    ends = np.cumsum(np.fromiter(chain((0,), map(len, held)), np.int64, len(held) + 1))
    return pa.Array.from_buffers(kind, len(held), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(held))])


def numpy_of(values: pa.Array[Any]) -> NDArray[Any]:
    """Numbers or truth values of Arrow's as an array of numpy's.  None of them may be missing."""
    assert values.null_count == 0, "numbers that are not there have no place in an array of numbers"
    first, end = values.offset, values.offset + len(values)
    held = values.buffers()[1]
    if pa.types.is_boolean(values.type):
        bits = np.frombuffer(held or b"", np.uint8)
        return np.unpackbits(bits, count=end, bitorder="little")[first:].astype(bool)
    return np.frombuffer(held or b"", np.dtype(str(values.type)))[first:end]
