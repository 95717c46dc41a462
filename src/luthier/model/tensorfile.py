"""A safetensors file written tensor by tensor, so that never more than one of them has to be whole in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The format's names, in the order in which its own library lays tensors out (from the end: wide types first).
_TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_WIDTH = {dtype: number for number, dtype in enumerate(_TYPES)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], whole: Callable[[Tensor], Tensor]) -> str:
    """Write what `safetensors.torch.save_file` would, byte for byte, and give the file's sha256.

    A tensor is hashed while it is written, since hashing can take longer than a disk.

    Args:
        whole: makes a whole tensor of one that has the shape and type of a whole one.

    Raises:
        OSError: the file cannot be written.
    """
    order, text = _header(tensors, {})
    start = len(text).to_bytes(8, "little") + text
    hashed = hashlib.sha256(start)
    with path.open("wb") as file, ThreadPoolExecutor(1) as beside:
        file.write(start)
        for name in order:
            value = whole(tensors[name]).detach().cpu().contiguous()
            content: Any = value.reshape(-1).view(torch.uint8).numpy()
            done = beside.submit(hashed.update, content)
            file.write(content)
            done.result()
    return hashed.hexdigest()


def file_size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = {}) -> int:
    """Bytes of the file that holds these tensors, which need no numbers."""
    _, text = _header(tensors, metadata)
    return 8 + len(text) + sum(value.nbytes for value in tensors.values())


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[list[str], bytes]:
    """The order of the tensors in the file, and what stands before them."""
    order = sorted(tensors, key=lambda name: (-_WIDTH[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _TYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return order, text + b" " * (-len(text) % 8)
