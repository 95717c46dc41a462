"""Weights rounded to few bits by bitsandbytes, hqq and EETQ: how each library writes them, and reads them back.

Legend: O output width, I input width, T rows of a product.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.base.errors import MissingExtra, ModelError
from luthier.model.config import Quant
from luthier.model.float8 import Float8
from luthier.model.folder import first_line

Held = Mapping[str, Tensor]
"""The tensors that stand for one weight, by name."""

_BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4 bits."""

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
        _hold_to_format(how, device)
    return how


def stored(module: Any) -> tuple[Rounding, dict[str, Tensor]] | None:
    """What a layer of bitsandbytes' own holds, as the files of a model brought it; None for other layers.

    Raises:
        ModelError: it was written with other block sizes than anybody uses.
    """
    layers = bitsandbytes().nn
    if isinstance(module, layers.Linear8bitLt):
        absmax_O: Any = module.state.SCB if module.weight.SCB is None else module.weight.SCB
        return EightBit(), {"codes": module.weight.data, "absmax": absmax_O}
    if not isinstance(module, layers.Linear4bit):
        return None
    state: Any = module.weight.quant_state
    if state.blocksize != _BLOCK or (state.nested and state.state2.blocksize != 256):
        raise ModelError(f"4 bits in blocks of {state.blocksize} are not supported", fix="Take the original weights")
    return FourBit(state.quant_type, state.nested), _held(module.weight.data, state)


@dataclass(frozen=True)
class FourBit:
    """NF4 or FP4 in blocks of 64 (QLoRA, Dettmers et al. 2023), by bitsandbytes."""

    format: str
    double_quant: bool

    def obstacle(self, rows: int, columns: int) -> str | None:
        return None

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        codes, state = bitsandbytes().functional.quantize_4bit(
            weight_OI.contiguous(), blocksize=_BLOCK, compress_statistics=self.double_quant, quant_type=self.format
        )
        return _held(codes, state)

    def dense(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        count = rows * columns
        if count % 2:  # for which the library compiles a kernel
            return self.decoded(held, rows, columns).to(dtype)
        # Blocks run over the ends of rows, which the kernel for CPUs (0.50) overlooks: its rows are whole blocks here.
        shape = (1, count) if count % _BLOCK else (count // _BLOCK, _BLOCK)
        flat = bitsandbytes().functional.dequantize_4bit(held["codes"], self._state(held, *shape, dtype))
        return flat.view(rows, columns)

    def decoded(self, held: Held, rows: int, columns: int) -> Tensor:
        """The rounded weight_OI in float32 by plain tensor operations: what the format means."""
        absmax = held["absmax"]
        if self.double_quant:
            scales = held["absmax2"].repeat_interleave(256)[: absmax.numel()]
            absmax = held["grid2"][absmax.long()] * scales + held["offset"]
        bytes_ = held["codes"].view(-1)
        codes = torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).view(-1)[: rows * columns].long()
        return (held["grid"][codes] * absmax.repeat_interleave(_BLOCK)[: codes.numel()]).view(rows, columns)

    def product(self, held: Held, rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        # The kernels for CPUs round to bfloat16, whatever the arithmetic.
        if not x.is_cuda:
            return None
        state = self._state(held, rows, x.shape[-1], x.dtype)
        return bitsandbytes().matmul_4bit(x, held["codes"].t(), quant_state=state, bias=bias_O)

    def _state(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Any:
        state = bitsandbytes().functional.QuantState
        second = None
        if self.double_quant:
            second = state(absmax=held["absmax2"], code=held["grid2"], blocksize=256, dtype=torch.float32)
        return state(
            absmax=held["absmax"],
            shape=torch.Size((rows, columns)),
            code=held["grid"],
            blocksize=_BLOCK,
            quant_type=self.format,
            dtype=dtype,
            offset=held.get("offset"),
            state2=second,
        )


@dataclass(frozen=True)
class EightBit:
    """int8 with one scale a row, in the format of LLM.int8 (Dettmers et al. 2022), by bitsandbytes.

    Only weights are rounded.  LLM.int8 also rounds activations, by way of float16, and keeps each layer's input for its
    backward pass where recomputing layers cannot free it; with weights alone gradients are exact and range is kept.
    """

    def obstacle(self, rows: int, columns: int) -> str | None:
        return None

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        codes, absmax_O, _ = bitsandbytes().functional.int8_vectorwise_quant(weight_OI.to(torch.float16).contiguous())
        return {"codes": codes, "absmax": absmax_O}

    def dense(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return held["codes"].to(dtype).mul_(held["absmax"][:, None] / 127)

    def product(self, held: Held, rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        return None


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
            blocks = -(-count // _BLOCK)
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


def _held(codes: Tensor, state: Any) -> dict[str, Tensor]:
    held: dict[str, Tensor] = {"codes": codes, "absmax": state.absmax, "grid": state.code}
    if state.nested:
        held |= {"offset": state.offset, "absmax2": state.state2.absmax, "grid2": state.state2.code}
    return held


def _hold_to_format(four: FourBit, device: torch.device) -> None:
    """Compare bitsandbytes' kernels on this device with the format, with whole blocks and without."""
    for rows, columns in ((8, 128), (9, 32)):
        weight_OI = torch.linspace(0, 9, rows * columns, device=device).view(rows, columns).sin()
        try:
            held = four.pack(weight_OI)
            wrong = four.dense(held, rows, columns, torch.float32) - four.decoded(held, rows, columns)
        except RuntimeError as error:
            what, code = f"cannot round to 4 bits on this {device.type} ({first_line(error)})", "no_kernel"
        else:
            if float(wrong.abs().max()) < 1e-4:
                continue
            what, code = f"reads its 4 bits back wrong on this {device.type}", "wrong_rounding"
        raise ModelError(
            f"bitsandbytes {what}", where="--quant_method bnb", code=code, fix="Use --quant_method hqq, or 8 bits"
        )


@cache
def bitsandbytes(asked: str = "--quant_method bnb") -> Any:
    """The package.  Raises MissingExtra."""
    # It speaks of kernels that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "quant", what_for=asked) from error


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
