"""Products over frozen weights held in few bits.  Adapters are added to them, in the arithmetic's type.

Legend: T packed tokens, I input width, O output width (of all joined layers together), K ranks of all their adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.model.ability import has_float8
from luthier.model.float8 import Float8, multiply
from luthier.model.lowbit import LowBitLinear
from luthier.model.pointwise import Pointwise
from luthier.model.products import Linear, Product, joined


class LowBitProduct(Product):
    """Weights are written out for the moment of each product."""

    adds_in_place = False

    def __init__(self, linears: Sequence[Linear], dtype: torch.dtype):
        super().__init__(linears, dtype)
        self.spare = 0
        device = linears[0].device
        self._a_KI = torch.zeros(self.rank, self.into, dtype=dtype, device=device)
        self._b_OK = torch.zeros(self.out, self.rank, dtype=dtype, device=device)

    def _hold(self) -> Tensor | None:
        return None

    def _seats(self) -> tuple[Tensor, Tensor]:
        return self._a_KI, self._b_OK

    def forward(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        u_TK, y_TO = x_TI @ self._a_KI.t(), self.times(x_TI, self._bias())
        return y_TO.addmm_(u_TK, self._b_OK.t()) if self.rank else y_TO, u_TK

    def added(self, h_TO: Tensor, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        u_TK, y_TO = x_TI @ self._a_KI.t(), self.times(x_TI, self._bias()).add_(h_TO)
        return y_TO.addmm_(u_TK, self._b_OK.t()) if self.rank else y_TO, u_TK

    def input_gradient(self, dy_TO: Tensor) -> tuple[Tensor, Tensor]:
        du_TK, dx_TI = self.inner_gradient(dy_TO), self.times_back(dy_TO)
        return dx_TI.addmm_(du_TK, self._a_KI) if self.rank else dx_TI, du_TK

    def inner_gradient(self, dy_TO: Tensor) -> Tensor:
        return dy_TO @ self._b_OK

    def _weight(self) -> Tensor:
        return joined([linear.dense(self.dtype) for linear in self.linears], self.dtype)


class Float8Product(LowBitProduct):
    """Both factors of each product in 8-bit floating point: weights once and for all, activations row by row.

    A weight is held once, and transposed on its way to the backward product, whose kernel wants it so.
    """

    def __init__(self, linears: Sequence[Linear], dtype: torch.dtype, pointwise: Pointwise):
        super().__init__(linears, dtype)
        self.pointwise = pointwise
        held = [linear.weight.held for linear in linears if isinstance(linear.weight, LowBitLinear)]
        self.codes_OI = torch.cat([tensors["codes"].view(torch.int8) for tensors in held]).view(torch.float8_e4m3fn)
        self.scale_O = torch.cat([tensors["scale"] for tensors in held])
        for linear, codes in zip(linears, self.codes_OI.split(self.sizes), strict=True):
            assert isinstance(linear.weight, LowBitLinear)
            linear.weight.register_buffer("codes", codes)

    @staticmethod
    def fits(linears: Sequence[Linear]) -> bool:
        """Whether all the weights are held in 8-bit floating point, and the device multiplies it."""
        held = [linear.weight for linear in linears]
        return has_float8(linears[0].device) and all(
            isinstance(layer, LowBitLinear) and isinstance(layer.how, Float8) for layer in held
        )

    def times(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        x8_TI, scale_T = self.pointwise.round_rows(x_TI, None)
        return multiply(x8_TI, scale_T, self.codes_OI, self.scale_O, self.dtype, bias_O)

    def times_back(self, dy_TO: Tensor) -> Tensor:
        # The weight's scales belong to the axis that is summed over, so they go to the other factor.
        dy8_TO, scale_T = self.pointwise.round_rows(dy_TO, self.scale_O)
        ones_I = self.scale_O.new_ones(self.into)
        return multiply(dy8_TO, scale_T, self.pointwise.transpose(self.codes_OI), ones_I, self.dtype, None)
