"""Matrix products by chosen kernels: bit for bit those of PyTorch.

pytest -m gpu -n 0 -s tests/gpu
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luthier.model import blas, cublas
from luthier.model.race import LAPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOKENS, WIDE, NARROW = 8192, 2432, 896


@pytest.fixture(autouse=True)
def _forget() -> None:
    blas._entries.clear()
    blas._races.clear()


def drawn(rows: int, columns: int, *, beside: int = 0, kind: torch.dtype = torch.bfloat16) -> Tensor:
    """Numbers of a part of a matrix that has more columns."""
    generator = torch.Generator("cuda").manual_seed(rows * columns)
    return torch.randn(rows, columns + beside, device="cuda", generator=generator).to(kind)[:, :columns]


def always(expected: Tensor, compute: Callable[[], Tensor]) -> None:
    """Whoever's turn it is, and when it is decided."""
    for number in range(1000):
        assert torch.equal(compute(), expected), f"call {number}"
        if blas._races and all(race.decided for race in blas._races.values()):
            assert torch.equal(compute(), expected)
            assert number >= 2 * LAPS, "there were several kernels"
            return
    raise AssertionError("never decided")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beside", [0, 64])
@pytest.mark.parametrize("biased", [False, True])
def test_forward(kind: torch.dtype, beside: int, biased: bool) -> None:
    weight_OI = drawn(WIDE, NARROW, beside=beside, kind=kind)
    bias_O = drawn(1, WIDE, kind=kind)[0] if biased else None
    x_TI = drawn(TOKENS, NARROW, beside=beside, kind=kind)
    linear = torch.nn.functional.linear
    always(linear(x_TI, weight_OI, bias_O), lambda: blas.multiply(x_TI, weight_OI.t(), bias_O))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beside", [0, 64])
def test_back(kind: torch.dtype, beside: int) -> None:
    weight_OI, dy_TO = (drawn(*shape, beside=beside, kind=kind) for shape in ((WIDE, NARROW), (TOKENS, WIDE)))
    always(dy_TO @ weight_OI, lambda: blas.multiply(dy_TO, weight_OI))


def test_added_in_place() -> None:
    x_TI, weight_OI, h_TO = drawn(TOKENS, WIDE), drawn(NARROW, WIDE), drawn(TOKENS, NARROW)
    expected = torch.addmm(h_TO, x_TI, weight_OI.t())
    always(expected, lambda: blas.add_to(h_TO.clone(), x_TI, weight_OI.t()))


def test_gradients_of_weights_in_float32() -> None:
    dy_TO, x_TI = drawn(TOKENS, WIDE, beside=64), drawn(TOKENS, NARROW)
    always(torch.mm(dy_TO.t(), x_TI, out_dtype=torch.float32), lambda: blas.times32(dy_TO.t(), x_TI))


def test_gradients_of_weights_added_in_float32() -> None:
    dy_TO, x_TI, total = drawn(TOKENS, WIDE), drawn(TOKENS, NARROW), torch.randn(WIDE, NARROW, device="cuda")

    def added() -> Tensor:
        again = total.clone()
        blas.add_product(again, dy_TO.t(), x_TI)
        return again

    always(torch.addmm(total, dy_TO.t(), x_TI, out_dtype=torch.float32), added)


def test_every_length_up_to_the_next_power_of_two_has_the_same_kernel() -> None:
    weight_OI, x_TI = drawn(WIDE, NARROW), drawn(TOKENS * 2 - 8, NARROW)
    always(x_TI @ weight_OI.t(), lambda: blas.multiply(x_TI, weight_OI.t()))
    for tokens in (TOKENS * 2 - 9, TOKENS + 1, TOKENS):
        some_TI = x_TI[-tokens:]
        assert torch.equal(blas.multiply(some_TI, weight_OI.t()), some_TI @ weight_OI.t())
    assert [bool(race.ways) for race in blas._races.values()] == [True]


def test_all_kernels_whose_bits_agree_on_some_rows_agree_on_all() -> None:
    x_TI, weight_OI = drawn(TOKENS, NARROW), drawn(WIDE, NARROW)
    out_TO = x_TI.new_empty(TOKENS, WIDE)
    form = cublas.Form.of(x_TI, weight_OI.t(), out_TO, adds=False, biased=False)
    call = cublas.Call(form)
    kernels = blas._equal(call, x_TI, weight_OI.t(), out_TO, None)
    assert kernels is not None and len(kernels) >= 2, "cuBLAS has several for a product as plain as this"
    assert torch.equal(out_TO, x_TI @ weight_OI.t()), "the first product is computed as well"
    for kernel in kernels:
        assert call.run(kernel, x_TI, weight_OI.t(), out_TO.fill_(float("nan")), None)
        assert torch.equal(out_TO, x_TI @ weight_OI.t())


def test_small_products_and_crooked_ones_stay_with_torch() -> None:
    small = drawn(64, NARROW)
    assert torch.equal(blas.multiply(small, small.t()), small @ small.t())
    crooked_TI, weight_OI = drawn(TOKENS, NARROW + 1)[:, 1:], drawn(WIDE, NARROW)
    assert torch.equal(blas.multiply(crooked_TI, weight_OI.t()), crooked_TI @ weight_OI.t())
    assert not any(race.ways for race in blas._races.values())


def test_a_product_of_zeros_opens_no_race() -> None:
    x_TI, weight_OI = torch.zeros_like(drawn(TOKENS, NARROW)), drawn(WIDE, NARROW)
    assert not blas.multiply(x_TI, weight_OI.t()).any()
    assert not any(race.ways for race in blas._races.values())
    x_TI += 1
    assert torch.equal(blas.multiply(x_TI, weight_OI.t()), x_TI @ weight_OI.t())
    assert [bool(race.ways) for race in blas._races.values()] == [True]
