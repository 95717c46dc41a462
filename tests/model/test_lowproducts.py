"""Products over weights in few bits against products with the same weights written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from luthier.model.float8 import Float8
from luthier.model.lowbit import LowBitLinear
from luthier.model.lowproducts import Float8Product, LowBitProduct
from luthier.model.pointwise import Plain
from luthier.model.products import Linear

TOKENS, INTO, SIZES, RANK = 37, 64, (48, 16), 3


def linears() -> list[Linear]:
    torch.manual_seed(0)
    made: list[Linear] = []
    for size in SIZES:
        plain = nn.Linear(INTO, size)
        held = LowBitLinear(Float8(), Float8().pack(plain.weight.data), plain, torch.float32)
        adapter = nn.Parameter(torch.randn(RANK, INTO)), nn.Parameter(torch.randn(size, RANK))
        made.append(Linear(held, nn.Parameter(plain.bias.data, requires_grad=False), adapter, scale=0.5))
    return made


def by_autograd(made: list[Linear], x_TI: Tensor, dy_TO: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    x_TI = x_TI.clone().requires_grad_()
    parts: list[Tensor] = []
    for linear in made:
        assert linear.adapter is not None
        a, b = linear.adapter
        parts.append(nn.functional.linear(x_TI, linear.dense(torch.float32), linear.bias) + x_TI @ a.t() @ b.t() * 0.5)
    y_TO = torch.cat(parts, dim=1)
    leaves = [matrix for linear in made for matrix in linear.adapter or ()]
    dx_TI, *gradients = torch.autograd.grad(y_TO, [x_TI, *leaves], dy_TO)
    return y_TO.detach(), dx_TI, gradients


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize(("kind", "worst"), [("written out", 1e-6), ("8-bit floats", 0.05)])
def test_products_equal_the_written_out_weights(kind: str, worst: float) -> None:
    made = linears()
    x_TI, dy_TO = torch.randn(TOKENS, INTO), torch.randn(TOKENS, sum(SIZES))
    expected = by_autograd(made, x_TI, dy_TO)
    assert Float8Product.fits(made)
    eight_bits = kind == "8-bit floats"
    product = Float8Product(made, torch.float32, Plain()) if eight_bits else LowBitProduct(made, torch.float32)
    Plain().board(product.riders())()
    y_TO, u_TK = product.forward(x_TI)
    dx_TI, du_TK = product.input_gradient(dy_TO)
    assert error(y_TO, expected[0]) < worst and error(dx_TI, expected[1]) < worst
    assert error(product.added(dy_TO, x_TI)[0], expected[0] + dy_TO) < worst
    found = [gradient for gradient in product.gradients(dy_TO, x_TI, u_TK, du_TK) if gradient is not None]
    for got, exact in zip(found, expected[2], strict=True):
        assert error(got, exact) < 1e-5, "adapters are computed in the arithmetic's type"
    # Joining the weights leaves each layer with its own part, held once.
    for linear, wanted in zip(made, linears(), strict=True):
        assert torch.equal(linear.dense(torch.float32), wanted.dense(torch.float32))
