"""Weights rounded by bitsandbytes: how it writes its 4 and 8 bits, and reads them back.

Legend: O output width, I input width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from luthier.base.errors import MissingExtra, ModelError
from luthier.model.folder import first_line

Held = Mapping[str, Tensor]
"""The tensors that stand for one weight, by name."""

BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4 bits."""


@dataclass(frozen=True)
class FourBit:
    """NF4 or FP4 in blocks of 64 (QLoRA, Dettmers et al. 2023), by bitsandbytes."""

    format: str
    double_quant: bool

    def obstacle(self, rows: int, columns: int) -> str | None:
        return None

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        codes, state = bitsandbytes().functional.quantize_4bit(
            weight_OI.contiguous(), blocksize=BLOCK, compress_statistics=self.double_quant, quant_type=self.format
        )
        return _held(codes, state)

    def dense(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        count = rows * columns
        if count % 2:  # for which the library compiles a kernel
            return self.decoded(held, rows, columns).to(dtype)
        # Blocks run over the ends of rows, which the kernel for CPUs (0.50) overlooks: its rows are whole blocks here.
        shape = (1, count) if count % BLOCK else (count // BLOCK, BLOCK)
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
        return (held["grid"][codes] * absmax.repeat_interleave(BLOCK)[: codes.numel()]).view(rows, columns)

    def product(self, held: Held, rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        # The kernels for CPUs round to bfloat16, whatever the arithmetic.
        if not x.is_cuda:
            return None
        state = self._state(held, rows, x.shape[-1], x.dtype)
        return bitsandbytes().matmul_4bit(x, held["codes"].t(), quant_state=state, bias=bias_O)

    def hold_to_format(self, device: torch.device) -> None:
        """Compare the kernels on this device with the format, with whole blocks and without.  Raises ModelError."""
        for rows, columns in ((8, 128), (9, 32)):
            weight_OI = torch.linspace(0, 9, rows * columns, device=device).view(rows, columns).sin()
            try:
                held = self.pack(weight_OI)
                wrong = self.dense(held, rows, columns, torch.float32) - self.decoded(held, rows, columns)
            except RuntimeError as error:
                what, code = f"cannot round to 4 bits on this {device.type} ({first_line(error)})", "no_kernel"
            else:
                if float(wrong.abs().max()) < 1e-4:
                    continue
                what, code = f"reads its 4 bits back wrong on this {device.type}", "wrong_rounding"
            raise ModelError(
                f"bitsandbytes {what}", where="--quant_method bnb", code=code, fix="Use --quant_method hqq, or 8 bits"
            )

    def _state(self, held: Held, rows: int, columns: int, dtype: torch.dtype) -> Any:
        state = bitsandbytes().functional.QuantState
        second = None
        if self.double_quant:
            second = state(absmax=held["absmax2"], code=held["grid2"], blocksize=256, dtype=torch.float32)
        return state(
            absmax=held["absmax"],
            shape=torch.Size((rows, columns)),
            code=held["grid"],
            blocksize=BLOCK,
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


def stored(module: Any) -> tuple[FourBit | EightBit, dict[str, Tensor]] | None:
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
    if state.blocksize != BLOCK or (state.nested and state.state2.blocksize != 256):
        raise ModelError(f"4 bits in blocks of {state.blocksize} are not supported", fix="Take the original weights")
    return FourBit(state.quant_type, state.nested), _held(module.weight.data, state)


def _held(codes: Tensor, state: Any) -> dict[str, Tensor]:
    held: dict[str, Tensor] = {"codes": codes, "absmax": state.absmax, "grid": state.code}
    if state.nested:
        held |= {"offset": state.offset, "absmax2": state.state2.absmax, "grid2": state.state2.code}
    return held


@cache
def bitsandbytes(asked: str = "--quant_method bnb") -> Any:
    """The package.  Raises MissingExtra."""
    # It speaks of kernels that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "quant", what_for=asked) from error
