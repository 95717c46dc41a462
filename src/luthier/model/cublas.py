"""All the kernels that cuBLAS has for a matrix product, and one of them run by name.

PyTorch runs the first of the list.  Bound with ctypes to the library that PyTorch has loaded already, so nothing is
built and nothing else is installed.  Source: NVIDIA, cuBLAS, "Using the cuBLASLt API".

Legend: out [M, N] = left [M, K] right [K, N], row by row; cuBLAS counts by columns and so sees them transposed.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Names of cublasLt.h and library_types.h.
_COMPUTE_32F, _R_32F = 68, 0
_KINDS = {torch.float32: _R_32F, torch.bfloat16: 14, torch.float16: 2}
_TRANSA, _TRANSB, _EPILOGUE, _BIAS_POINTER = 3, 4, 7, 8
_EPILOGUE_BIAS = 4
_MAX_WORKSPACE, _ALIGNMENTS = 1, (5, 6, 7, 8)

_MOST = 16
"""Kernels that are asked for; cuBLAS names eight or so."""

ALIGNMENT = 16
"""Bytes of which every matrix and each of its rows must start at a multiple."""

Kernel = ctypes.Array[Any]
"""One way to compute a product, opaque."""


class Form(NamedTuple):
    """A product, but for where its matrices lie."""

    m: int
    n: int
    k: int
    left: tuple[int, ...]
    """strides"""
    right: tuple[int, ...]
    out: int
    """elements from one row to the next"""
    kind: torch.dtype
    """of both factors"""
    out_kind: torch.dtype
    adds: bool
    """to what is in `out`"""
    biased: bool
    device: int

    @staticmethod
    def of(left_MK: Tensor, right_KN: Tensor, out_MN: Tensor, *, adds: bool, biased: bool) -> Form:
        """The form of a product of these."""
        (m, k), n = left_MK.shape, right_KN.shape[1]
        strides = left_MK.stride(), right_KN.stride(), out_MN.stride(0)
        return Form(m, n, k, *strides, left_MK.dtype, out_MN.dtype, adds, biased, left_MK.get_device())

    @property
    def aligned(self) -> bool:
        """Whether each factor has rows or columns without gaps, and lines that start where kernels can read them."""
        lines = [self.left, self.right, (self.out, 1)]
        sizes = [self.kind.itemsize, self.kind.itemsize, self.out_kind.itemsize]
        return all(
            min(line) == 1 and max(line) * size % ALIGNMENT == 0 for line, size in zip(lines, sizes, strict=True)
        )


class _Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("kernel", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@cache
def library() -> ctypes.CDLL | None:
    """cuBLAS as PyTorch has loaded it; None where there is none."""
    if torch.version.cuda is None or not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.split('.')[0]}")
    except OSError:
        return None


@cache
def _handle(device: int) -> c_void_p:
    handle = c_void_p()
    with torch.cuda.device(device):
        _call("Create", byref(handle))
    return handle


def _call(name: str, *arguments: Any) -> None:
    found = library()
    assert found is not None
    status = getattr(found, f"cublasLt{name}")(*arguments)
    if status:
        raise RuntimeError(f"cublasLt{name} answered {status}")


class Call:
    """A product of one form, with any of its kernels."""

    def __init__(self, form: Form):
        self.form = form
        found = library()
        assert found is not None
        self._library, self._handle = found, _handle(form.device)
        self._made: list[tuple[str, c_void_p]] = []
        self._how = self._make("MatmulDesc", c_int(_COMPUTE_32F), c_int(_R_32F))
        self._right, right_turned = self._factor(form.right, form.k, form.n)
        self._left, left_turned = self._factor(form.left, form.m, form.k)
        self._out = self._layout(form.out_kind, form.n, form.m, form.out)
        for attribute, value in ((_TRANSA, right_turned), (_TRANSB, left_turned)):
            self._set("MatmulDesc", self._how, attribute, c_int32(value))
        if form.biased:
            self._set("MatmulDesc", self._how, _EPILOGUE, c_int32(_EPILOGUE_BIAS))
        self._one, self._beta = c_float(1.0), c_float(float(form.adds))
        self._fitting: dict[int, bool] = {}

    def __del__(self) -> None:
        for kind, held in getattr(self, "_made", ()):
            getattr(self._library, f"cublasLt{kind}Destroy")(held)

    def kernels(self) -> list[Kernel]:
        """Those that need no memory of their own, in cuBLAS's order of preference."""
        wishes = self._make("MatmulPreference")
        self._set("MatmulPreference", wishes, _MAX_WORKSPACE, c_uint64(0))
        for attribute in _ALIGNMENTS:
            self._set("MatmulPreference", wishes, attribute, c_int32(ALIGNMENT))
        results, count = (_Result * _MOST)(), c_int()
        sides, found = (self._right, self._left, self._out, self._out), (c_int(_MOST), results, byref(count))
        status = self._library.cublasLtMatmulAlgoGetHeuristic(self._handle, self._how, *sides, wishes, *found)
        return [result.kernel for result in results[: count.value] if result.state == 0] if status == 0 else []

    def fits(self, kernel: Kernel) -> bool:
        """Whether a kernel that was found for another form can compute this one."""
        if id(kernel) not in self._fitting:
            sides = self._right, self._left, self._out, self._out
            status = self._library.cublasLtMatmulAlgoCheck(
                self._handle, self._how, *sides, byref(kernel), byref(_Result())
            )
            self._fitting[id(kernel)] = status == 0
        return self._fitting[id(kernel)]

    def run(self, kernel: Kernel, left_MK: Tensor, right_KN: Tensor, out_MN: Tensor, bias_N: Tensor | None) -> bool:
        """Launch it on the current stream of the current device, where the matrices must lie.

        False where that is refused, and then nothing has happened.
        """
        if bias_N is not None:
            self._set("MatmulDesc", self._how, _BIAS_POINTER, c_void_p(bias_N.data_ptr()))
        out = c_void_p(out_MN.data_ptr())
        status = self._library.cublasLtMatmul(
            self._handle, self._how, byref(self._one), c_void_p(right_KN.data_ptr()), self._right,
            c_void_p(left_MK.data_ptr()), self._left, byref(self._beta), out, self._out, out, self._out,
            byref(kernel), None, c_size_t(0), c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        return status == 0

    def _factor(self, strides: tuple[int, ...], rows: int, columns: int) -> tuple[c_void_p, bool]:
        """A factor as cuBLAS sees it, and whether it is to be turned."""
        down, across = strides
        if across == 1:
            return self._layout(self.form.kind, columns, rows, down), False
        return self._layout(self.form.kind, rows, columns, across), True

    def _layout(self, kind: torch.dtype, rows: int, columns: int, apart: int) -> c_void_p:
        return self._make("MatrixLayout", c_int(_KINDS[kind]), c_uint64(rows), c_uint64(columns), c_int64(apart))

    def _make(self, kind: str, *arguments: Any) -> c_void_p:
        made = c_void_p()
        _call(f"{kind}Create", byref(made), *arguments)
        self._made.append((kind, made))
        return made

    def _set(self, kind: str, held: c_void_p, attribute: int, value: Any) -> None:
        _call(f"{kind}SetAttribute", held, c_int(attribute), byref(value), c_size_t(ctypes.sizeof(value)))
