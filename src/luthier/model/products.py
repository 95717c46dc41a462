"""The linear layers of a decoder layer, those with the same input joined into one product, backward written out.

    y = x W^T + b + s (x A^T) B^T

A low-rank adapter rides inside the product of its frozen weight instead of being added to it:

    y  = [x, u] [W, s B]^T          u  = x A^T
    dx = [dy, du] [W; A]            du = dy (s B)

so y and dx, wide tensors, are written once and never read again to have something added.  One matrix of O + K rows and
I + K columns holds W, s B (right) and A (below); x and dy come in buffers with K spare columns.

Where the next function reads y (or dx) anyway, it can add an adapter's part itself, if that costs less: `partly`.

Legend: T packed tokens, I input width, O output width (of all joined layers together), K ranks of all their adapters.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from luthier.model.blas import add_product, add_to, column_sums, multiply, times32
from luthier.model.lowbit import LowBitLinear
from luthier.model.pointwise import LowRank, Rider

_ALIGN = 64
"""Columns that adapters take come in multiples of this: 128 bytes in bfloat16, the tile of a matrix kernel."""

_PARTLY = 64
"""Ranks of adapters that whoever reads a product is asked to add."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer, as a method left it."""

    weight: nn.Parameter | LowBitLinear
    """[O, I], or the layer that holds it in few bits"""
    bias: nn.Parameter | None = None
    adapter: tuple[nn.Parameter, nn.Parameter] | None = None
    """A [K, I] and B [O, K] of a low-rank adapter (Hu et al. 2021)"""
    scale: float = 1.0
    """s, of the adapter's product"""

    @property
    def shape(self) -> tuple[int, int]:
        """O and I."""
        held = self.weight
        return (
            (held.out_features, held.in_features) if isinstance(held, LowBitLinear) else (held.shape[0], held.shape[1])
        )

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        held = self.weight
        return next(iter(held.held.values())).device if isinstance(held, LowBitLinear) else held.device

    @property
    def moves(self) -> bool:
        """Whether the weight is trained."""
        return isinstance(self.weight, nn.Parameter) and self.weight.requires_grad

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight in some type.  [O, I]"""
        return self.weight.dense(dtype) if isinstance(self.weight, LowBitLinear) else self.weight.to(dtype)

    def parameters(self) -> list[nn.Parameter]:
        """In the order in which `Product.gradients` answers."""
        weight = [self.weight] if isinstance(self.weight, nn.Parameter) else []
        return [*weight, *([] if self.bias is None else [self.bias]), *(self.adapter or ())]


class Product:
    """Several linear layers of one input, their outputs side by side.

    Frozen weights are moved into one matrix, of which the layers keep views, so nothing is held twice.  Weights that
    move are joined and rounded to the arithmetic's type for each use.
    """

    def __init__(self, linears: Sequence[Linear], dtype: torch.dtype):
        self.linears, self.dtype = tuple(linears), dtype
        self.parameters = [parameter for linear in linears for parameter in linear.parameters()]
        self.sizes = [linear.shape[0] for linear in linears]
        self.out, self.into = sum(self.sizes), linears[0].shape[1]
        self.ranks = [linear.adapter[0].shape[0] if linear.adapter else 0 for linear in linears]
        self.rank = sum(self.ranks)
        self.spare = -(-self.rank // _ALIGN) * _ALIGN
        self.moves = any(linear.moves for linear in linears)
        self._held = None if self.moves else self._hold()
        self._written: Tensor | None = None
        fixed = all(linear.bias is None or not linear.bias.requires_grad for linear in linears)
        self._fixed_bias = self._join_biases() if fixed else None

    adds_in_place = True
    """Whether `added` wants a copy of what it adds to: the norm that reads the residual stream can make one."""

    @property
    def lends(self) -> bool:
        """Whether whoever reads the product is asked to add its adapters."""
        return 0 < self.rank <= _PARTLY

    def riders(self) -> list[Rider]:
        """Where the adapters ride."""
        seats = self._seats()
        if seats is None:
            return []
        a_KI, b_OK = seats
        found: list[Rider] = []
        for linear, row, column in zip(self.linears, *self._corners(), strict=True):
            if linear.adapter is not None:
                found.append(Rider(linear.adapter[0], 1.0, a_KI[column]))
                found.append(Rider(linear.adapter[1], linear.scale, b_OK[row, column]))
        return found

    def _corners(self) -> tuple[list[slice], list[slice]]:
        """Rows of each layer's output, and columns of its adapter."""
        rows, columns = accumulate(self.sizes, initial=0), accumulate(self.ranks, initial=0)
        return [slice(*ends) for ends in pairwise(rows)], [slice(*ends) for ends in pairwise(columns)]

    def _seats(self) -> tuple[Tensor, Tensor] | None:
        """A_KI and s B_OK of all adapters, to be written."""
        return (
            None if self._held is None else (self._held[self.out :, : self.into], self._held[: self.out, self.into :])
        )

    def _riding(self) -> tuple[Tensor, Tensor]:
        """A_KI and s B_OK of all adapters, as they are now."""
        seats = self._seats()
        assert seats is not None
        return seats[0][: self.rank], seats[1][:, : self.rank]

    def room(self, x_T: Tensor) -> Tensor:
        """Memory for an input and what rides beside it.  [T, I + K]"""
        return x_T.new_empty(len(x_T), self.into + self.spare)

    def room_back(self, x_T: Tensor) -> Tensor:
        """Memory for the output's gradient and what rides beside it.  [T, O + K]"""
        return x_T.new_empty(len(x_T), self.out + self.spare)

    def forward(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """y_TO, and u_TK, which the backward pass wants again.

        x_TI: from `room`, its first I columns filled.
        """
        u_TK = self._inner(x_TI)
        return multiply(x_TI, self._weight()[: self.out].t(), self._bias()), u_TK

    def added(self, h_TO: Tensor, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """h_TO + y_TO, which take h's memory where the product `adds_in_place`, and u_TK.

        x_TI: from `room`, its first I columns filled.
        """
        u_TK = self._inner(x_TI)
        bias = self._bias()
        if bias is not None:
            h_TO += bias
        return add_to(h_TO, x_TI, self._weight()[: self.out].t()), u_TK

    def partly(self, x_TI: Tensor) -> tuple[Tensor, Tensor, LowRank | None]:
        """`forward`, and what y_TO still lacks."""
        if not self.lends:
            return *self.forward(x_TI), None
        a_KI, b_OK = self._riding()
        u_TK = x_TI[:, : self.into] @ a_KI.t()
        return self.times(x_TI[:, : self.into], self._bias()), u_TK, LowRank(u_TK, b_OK)

    def _inner(self, x_TI: Tensor) -> Tensor:
        """u_TK, put beside x as well."""
        if not self.spare:
            return x_TI.new_empty(len(x_TI), 0)  # not a part of x, which would keep all of it
        assert self._held is not None
        # Seats that no adapter takes hold zeros, so that all of the spare columns are written.
        beside = x_TI[:, self.into :]
        torch.mm(x_TI[:, : self.into], self._held[self.out :, : self.into].t(), out=beside)
        return beside[:, : self.rank].contiguous()

    def input_gradient(self, dy_TO: Tensor) -> tuple[Tensor, Tensor]:
        """dx_TI and du_TK.  dy_TO: from `room_back`, its first O columns filled."""
        du_TK = self.inner_gradient(dy_TO)
        return multiply(dy_TO, self._weight()[:, : self.into]), du_TK

    def inner_gradient(self, dy_TO: Tensor) -> Tensor:
        """du_TK alone, which is put beside dy as well."""
        if not self.spare:
            return dy_TO.new_empty(len(dy_TO), 0)
        torch.mm(dy_TO[:, : self.out], self._weight()[: self.out, self.into :], out=dy_TO[:, self.out :])
        return dy_TO[:, self.out : self.out + self.rank].contiguous()

    def input_gradient_partly(self, dy_TO: Tensor) -> tuple[Tensor, Tensor, LowRank | None]:
        """`input_gradient`, and what dx_TI still lacks.  Where the product `lends`, dy needs no room beside it."""
        if not self.lends:
            return *self.input_gradient(dy_TO), None
        a_KI, b_OK = self._riding()
        du_TK = dy_TO[:, : self.out] @ b_OK
        return self.times_back(dy_TO[:, : self.out]), du_TK, LowRank(du_TK, a_KI.t())

    def times(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x W^T + b, without adapters.  [T, I] -> [T, O]"""
        return multiply(x_TI, self._weight()[: self.out, : self.into].t(), bias_O)

    def times_back(self, dy_TO: Tensor) -> Tensor:
        """dy W, without adapters.  [T, O] -> [T, I]"""
        return multiply(dy_TO, self._weight()[: self.out, : self.into])

    def gradients(
        self,
        dy_TO: Tensor,
        x_TI: Tensor | None,
        u_TK: Tensor,
        du_TK: Tensor,
        *,
        da_KI: Tensor | None = None,
        dbs: Sequence[Tensor] | None = None,
    ) -> list[Tensor | None]:
        """The gradient of each of `parameters`, float32; None for those that do not move or have it added already.

        da_KI: of the adapters' A, where it is known; then x is not asked for, unless weights move.
        dbs: of each layer's B without its scale, where they are known.
        """
        dy_TO, x_TI = dy_TO[:, : self.out], None if x_TI is None else x_TI[:, : self.into]
        if self.rank and da_KI is None:
            assert x_TI is not None
            da_KI = times32(du_TK.t(), x_TI)
        if self.rank and dbs is None:
            db_OK = times32(dy_TO.t(), u_TK)
            dbs = [db_OK[corner] for corner in zip(*self._corners(), strict=True)]
        dweights = self._weight_gradients(dy_TO, x_TI)
        dbias_O = self._bias_gradient(dy_TO)
        found: list[Tensor | None] = []
        for index, (linear, row, column) in enumerate(zip(self.linears, *self._corners(), strict=True)):
            if isinstance(linear.weight, nn.Parameter):
                found.append(dweights.pop(0))
            if linear.bias is not None:
                found.append(dbias_O[row] if linear.bias.requires_grad and dbias_O is not None else None)
            if linear.adapter is not None:
                assert da_KI is not None and dbs is not None
                a, b = linear.adapter
                found.append(da_KI[column] if a.requires_grad else None)
                found.append(dbs[index] * linear.scale if b.requires_grad else None)
        return found

    def _weight_gradients(self, dy_TO: Tensor, x_TI: Tensor | None) -> list[Tensor | None]:
        """Of each weight; after a step's first micro-batch they are added to what is there, in the product itself."""
        if not self.moves:
            return [None] * len(self.linears)
        assert x_TI is not None
        weights = self.moving()
        there = [weight.grad for weight in weights]
        if all(weight.requires_grad for weight in weights) and all(map(is_plain32, there)):
            for gradient, row in zip(there, self._corners()[0], strict=True):
                assert gradient is not None
                add_product(gradient, dy_TO[:, row].t(), x_TI)
            return [None] * len(weights)
        parts = times32(dy_TO.t(), x_TI).split(self.sizes)
        return [part if weight.requires_grad else None for weight, part in zip(weights, parts, strict=True)]

    def _bias_gradient(self, dy_TO: Tensor) -> Tensor | None:
        """Of all biases at once, float32."""
        moves = any(linear.bias is not None and linear.bias.requires_grad for linear in self.linears)
        return column_sums(dy_TO) if moves else None

    def _weight(self) -> Tensor:
        """[O + K, I + K] in the arithmetic's type."""
        if self._held is not None:
            return self._held
        if self._written is not None:
            return self._written
        return joined(self.moving(), self.dtype)

    def moving(self) -> list[Tensor]:
        """The weights as they are trained."""
        return [linear.weight for linear in self.linears if isinstance(linear.weight, Tensor)]

    def write_to(self, weight_OI: Tensor, targets: list[Tensor]) -> None:
        """Use `weight_OI` as the weight until `forget`; where each layer's part has to be written goes to `targets`."""
        self._written = weight_OI
        targets.extend(weight_OI.split(self.sizes))

    def forget(self) -> None:
        """Let go of what `write_to` took."""
        self._written = None

    def _hold(self) -> Tensor | None:
        """The matrix of weights and adapters; each weight becomes a view of its part."""
        device = self.linears[0].device
        held = torch.zeros(self.out + self.spare, self.into + self.spare, dtype=self.dtype, device=device)
        for linear, part in zip(self.linears, held[: self.out, : self.into].split(self.sizes), strict=True):
            assert isinstance(linear.weight, nn.Parameter)
            linear.weight.data = part.copy_(linear.weight.data)
        return held

    def _bias(self) -> Tensor | None:
        return self._fixed_bias if self._fixed_bias is not None else self._join_biases()

    def _join_biases(self) -> Tensor | None:
        biases = [linear.bias for linear in self.linears]
        if all(bias is None for bias in biases):
            return None
        pairs = zip(biases, self.linears, strict=True)
        parts = [torch.zeros(linear.shape[0], device=linear.device) if b is None else b for b, linear in pairs]
        return joined(parts, self.dtype)


def is_plain32(gradient: Tensor | None) -> bool:
    """Whether there is a gradient that a kernel can add to."""
    return type(gradient) is Tensor and gradient.dtype == torch.float32


@contextmanager
def written_out(products: Sequence[Product], written: Tensor | None = None) -> Generator[Tensor | None]:
    """Weights that move are rounded to the arithmetic's type once, all together, for as long as this lasts.

    Yields what they were written to; given back as `written`, it is used again as it is.
    """
    moving = [product for product in products if product.moves]
    if not moving:
        yield None
        return
    flat = written
    if flat is None:
        device = moving[0].linears[0].device
        flat = torch.empty(sum(p.out * p.into for p in moving), dtype=moving[0].dtype, device=device)
    targets: list[Tensor] = []
    for product, part in zip(moving, flat.split([p.out * p.into for p in moving]), strict=True):
        product.write_to(part.view(product.out, product.into), targets)
    if written is None:
        with torch.no_grad():
            torch._foreach_copy_(targets, [weight for product in moving for weight in product.moving()])  # pyright: ignore[reportPrivateUsage]
    try:
        yield flat
    finally:
        for product in moving:
            product.forget()


def joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Side by side along the first axis, in one pass."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    side_by_side = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:], dtype=dtype)
    with torch.no_grad():
        torch._foreach_copy_(side_by_side.split([len(part) for part in parts]), list(parts))  # pyright: ignore[reportPrivateUsage]
    return side_by_side
