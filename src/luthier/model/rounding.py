"""Weights rounded to few bits: what each way to hold them has in common, and those of hqq and EETQ.

Legend: O output width, I input width, T rows of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.base.errors import MissingExtra, ModelError
from luthier.model.bnb import BLOCK, EightBit, FourBit, Held, bitsandbytes
from luthier.model.config import Quant
from luthier.model.float8 import Float8

_EIGHT_BITS_ELSEWHERE = "Use --quant_method hqq --quant_bits 8, which also rounds weights only and runs everywhere"


class Rounding(Protocol):
    """One way to hold a weight."""

    def obstacle(self, rows: int, columns: int) -> str | None:
        """Why a weight [rows, columns] cannot be held so, or None."""
        ...

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """Round a weight, on its device."""
        ...

    def dense(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """The rounded weight_OI."""
        ...

    def product(self, held: Held, rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        """x W^T + b by the library's own kernel, [..., I] -> [..., O], without gradient; None where there is none."""
        ...


def rounding(quant: Quant, device: torch.device) -> Rounding:
    """What the settings ask for.

    Raises:
        MissingExtra: the library is not installed.
        ModelError: it cannot work on this device.
    """
    asked = f"--quant_method {quant.method}"
    how = _unopened(quant)
    if quant.method == "fp8":
        return how
    if quant.method == "hqq":
        _hqq(asked)
        return how
    if quant.method == "eetq":
        if device.type != "cuda":
            raise ModelError(
                "EETQ's kernels run on NVIDIA GPUs only", where=asked, code="no_kernel", fix=_EIGHT_BITS_ELSEWHERE
            )
        return Eetq(_eetq())
    bitsandbytes(asked)
    if isinstance(how, FourBit):
        how.hold_to_format(device)
    return how


@dataclass(frozen=True)
class Hqq:
    """Groups along the input with a scale and a zero each, by half-quadratic optimisation (Badri & Shaji 2023)."""

    bits: int
    group_size: int

    def obstacle(self, rows: int, columns: int) -> str | None:
        groups, rest = divmod(rows * columns, self.group_size)
        if rest:
            return f"its size is no multiple of {self.group_size}, hqq's group"
        together = {4: 2, 2: 4}.get(self.bits, 1)
        return f"hqq packs {together} groups together" if groups % together else None

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        codes, meta = _hqq().Quantizer.quantize(
            weight_OI,
            nbits=self.bits,
            group_size=self.group_size,
            axis=1,
            # A whole number fits into float16 exactly, and in 4 bits costs nothing.
            round_zero=self.bits == 4,
            device=str(weight_OI.device),
        )
        wide = weight_OI.dtype if weight_OI.dtype == torch.float32 else torch.float16
        return {"codes": codes, "scale": meta["scale"].to(wide), "zero": meta["zero"].to(wide)}

    def dense(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        quantizer = _hqq().Quantizer
        meta: dict[str, Any] = {
            "nbits": self.bits,
            "group_size": self.group_size,
            "axis": 1,
            "shape": (rows, columns),
            "packing": quantizer.bit_to_packing[self.bits],
            "view_as_float": False,
            # bfloat16 would round zeros of 8 bits to halves.
            "compute_dtype": held["scale"].dtype,
            "scale": held["scale"],
            "zero": held["zero"],
        }
        return quantizer.dequantize(held["codes"], meta).to(dtype)

    def product(self, held: Held, rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Eetq:
    """int8 with one scale a column, computed by EETQ's kernels, which know float16 only."""

    kernels: Any
    """`quant_weights` and `w8_a16_gemm`"""

    def obstacle(self, rows: int, columns: int) -> str | None:
        return "EETQ's kernel wants multiples of 64" if rows % 64 or columns % 64 else None

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        codes, scales = self.kernels.quant_weights(weight_OI.t().contiguous().cpu().half(), torch.int8, False)
        return {"codes": codes.to(weight_OI.device), "scale": scales.to(weight_OI.device)}

    def dense(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        # The codes lie as the kernel likes them, so only the kernel can read them back.
        one_II = torch.eye(columns, dtype=torch.float16, device=held["codes"].device)
        return self._gemm(held, one_II).t().to(dtype)

    def product(self, held: Held, rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        y = self._gemm(held, x.half().reshape(-1, x.shape[-1])).view(*x.shape[:-1], rows).to(x.dtype)
        return y if bias_O is None else y + bias_O

    def _gemm(self, held: Held, x_TI: Tensor) -> Tensor:
        return self.kernels.w8_a16_gemm(x_TI, held["codes"], held["scale"])


class Blank:
    """A way to hold weights without its library, for networks without numbers: only sizes are right."""

    def __init__(self, quant: Quant):
        self.quant = quant
        self._how = _unopened(quant)

    @property
    def like(self) -> Rounding:
        """What a layer is to be told."""
        return self._how if isinstance(self._how, Float8) else self

    def obstacle(self, rows: int, columns: int) -> str | None:
        return self._how.obstacle(rows, columns)

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        return self.held(weight_OI.shape[0], weight_OI.shape[1], weight_OI.dtype)

    def dense(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return held["codes"].new_empty(rows, columns, dtype=dtype)

    def product(self, held: Held, rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        return None

    def held(self, rows: int, columns: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors of the sizes that `pack` gives a weight [rows, columns] in `dtype`, on the meta device."""
        quant, count, float32 = self.quant, rows * columns, torch.float32
        sizes: dict[str, tuple[int, torch.dtype]]
        if quant.method == "fp8":
            empty_OI = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device="meta")
            return {"codes": empty_OI, "scale": torch.empty(rows, dtype=float32, device="meta")}
        if quant.method == "hqq":
            groups, bits, wide = (
                count // quant.group_size,
                quant.bits or 4,
                dtype if dtype == float32 else torch.float16,
            )
            codes = {8: count, 4: count // 2, 2: count // 4, 3: -(-groups // 10) * quant.group_size * 4}[bits]
            sizes = {"codes": (codes, torch.uint8), "scale": (groups, wide), "zero": (groups, wide)}
        elif quant.method == "eetq":
            sizes = {"codes": (count, torch.int8), "scale": (rows, torch.float16)}
        elif quant.bits == 8:
            sizes = {"codes": (count, torch.int8), "absmax": (rows, float32)}
        else:
            blocks = -(-count // BLOCK)
            sizes = {"codes": (-(-count // 2), torch.uint8), "grid": (16, float32)}
            sizes["absmax"] = (blocks, torch.uint8 if quant.double_quant else float32)
            if quant.double_quant:
                sizes |= {"offset": (1, float32), "absmax2": (-(-blocks // 256), float32), "grid2": (256, float32)}
        return {name: torch.empty(size, dtype=kind, device="meta") for name, (size, kind) in sizes.items()}


def _unopened(quant: Quant) -> Rounding:
    """What the settings ask for, whose library is not asked for anything yet."""
    if quant.method == "fp8":
        return Float8()
    if quant.method == "hqq":
        return Hqq(bits=quant.bits or 4, group_size=quant.group_size)
    if quant.method == "eetq":
        return Eetq(None)
    return EightBit() if quant.bits == 8 else FourBit(quant.format, quant.double_quant)


@cache
def _hqq(asked: str = "--quant_method hqq") -> Any:
    try:
        return import_module("hqq.core.quantize")
    except ImportError as error:
        raise MissingExtra("hqq", "quant", what_for=asked) from error


@cache
def _eetq() -> Any:
    """EETQ's extension, from its own package or from the kernel hub."""
    try:
        return import_module("EETQ")
    except ImportError:
        pass
    try:
        return import_module("kernels").get_kernel("kernels-community/quantization-eetq", version=1)
    except Exception as error:  # not installed, no network, or no build for this GPU
        raise ModelError(
            "EETQ's kernels are not here: neither the package EETQ (built from github.com/NetEase-FuXi/EETQ) nor, "
            f"through the package kernels, the hub's quantization-eetq ({type(error).__name__})",
            where="--quant_method eetq",
            code="missing_extra",
            fix=_EIGHT_BITS_ELSEWHERE,
        ) from error
