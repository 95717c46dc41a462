"""A frozen base in 8-bit floating point (e4m3, Micikevicius et al. 2022), one scale a row.

Experimental: on a GPU that multiplies such numbers (compute capability 8.9 and newer) Luthier's own layers round the
activations as well, so the answers are those of a slightly different model.

Legend: T rows, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.model.counted import counting

HIGHEST = 448.0
"""The largest number of e4m3."""


@dataclass(frozen=True)
class Float8:
    """How a weight is held."""

    def obstacle(self, rows: int, columns: int) -> str | None:
        """Why a weight [rows, columns] cannot be held so, or None."""
        return "products of 8-bit numbers want multiples of 16" if rows % 16 or columns % 16 else None

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """Round a weight, on its device."""
        codes_OI, scale_O = round_rows(weight_OI, None)
        return {"codes": codes_OI, "scale": scale_O}

    def dense(self, held: Mapping[str, Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """The rounded weight_OI."""
        return (held["codes"].float() * held["scale"][:, None]).to(dtype)

    def product(self, held: Mapping[str, Tensor], rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        """None: outside Luthier's own layers activations are not rounded."""
        return None


def round_rows(x_TI: Tensor, columns_I: Tensor | None) -> tuple[Tensor, Tensor]:
    """x (times `columns_I`) in e4m3 [T, I], and the float32 scale of each row [T]; x = codes * scale."""
    x = x_TI.float() if columns_I is None else x_TI.float() * columns_I
    scale_T = x.abs().amax(dim=1).clamp(min=1e-12) / HIGHEST
    return (x / scale_T[:, None]).clamp(-HIGHEST, HIGHEST).to(torch.float8_e4m3fn), scale_T


def multiply(
    left_TI: Tensor, scale_T: Tensor, right_OI: Tensor, scale_O: Tensor, dtype: torch.dtype, bias_O: Tensor | None
) -> Tensor:
    """(left * scale) (right * scale)^T + bias, of codes.  [T, O]"""
    if counting():
        return left_TI.new_empty(left_TI.shape[0], right_OI.shape[0], dtype=dtype)
    if left_TI.is_cuda:
        return torch._scaled_mm(  # pyright: ignore[reportPrivateUsage]
            left_TI,
            right_OI.t(),
            scale_a=scale_T[:, None],
            scale_b=scale_O[None],
            bias=bias_O,
            out_dtype=dtype,
            use_fast_accum=True,
        )
    product_TO = (left_TI.float() @ right_OI.float().t()) * scale_T[:, None] * scale_O
    return (product_TO if bias_O is None else product_TO + bias_O).to(dtype)
