"""Matrix products where no kernel is chosen, and how forms are told apart."""

from __future__ import annotations

import pytest
import torch

from luthier.model import blas
from luthier.model.counted import as_on_gpu
from luthier.model.cublas import Form


def form(m: int, n: int, k: int, *, out_kind: torch.dtype = torch.bfloat16, apart: int = 0) -> Form:
    """x W^T."""
    return Form(
        m, n, k, (k + apart, 1), (1, k + apart), n, torch.bfloat16, out_kind, adds=False, biased=False, device=0
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_on_a_cpu_these_are_torchs_products(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    x_TI, weight_OI, bias_O = (torch.randn(*shape).to(kind) for shape in ((33, 16), (24, 16), (24,)))
    linear = torch.nn.functional.linear
    assert torch.equal(blas.multiply(x_TI, weight_OI.t()), linear(x_TI, weight_OI))
    assert torch.equal(blas.multiply(x_TI, weight_OI.t(), bias_O), linear(x_TI, weight_OI, bias_O))
    y_TO = linear(x_TI, weight_OI)
    room = torch.empty_like(x_TI)
    assert blas.multiply(y_TO, weight_OI, out=room) is room
    assert torch.equal(room, y_TO @ weight_OI)
    total_TO = y_TO.clone()
    assert blas.add_to(total_TO, x_TI, weight_OI.t()) is total_TO
    assert torch.equal(total_TO, torch.addmm(y_TO, x_TI, weight_OI.t()))


def test_sums_in_float32() -> None:
    torch.manual_seed(0)
    dy_TO, x_TI = torch.randn(33, 24), torch.randn(33, 16)
    total = torch.ones(24, 16)
    blas.add_product(total, dy_TO.t(), x_TI)
    assert torch.equal(total, 1 + blas.times32(dy_TO.t(), x_TI))
    assert torch.allclose(blas.times32(dy_TO.t(), x_TI), dy_TO.t() @ x_TI)
    assert blas.times32(dy_TO.t().bfloat16(), x_TI.bfloat16()).dtype == torch.float32
    assert torch.allclose(blas.column_sums(dy_TO), dy_TO.sum(0))


def test_counted_products_make_what_a_gpu_would_make() -> None:
    with as_on_gpu():
        x_TI, weight_OI = (torch.empty(shape, device="meta", dtype=torch.bfloat16) for shape in ((33, 16), (24, 16)))
        assert blas.multiply(x_TI, weight_OI.t()).shape == (33, 24)
        assert blas.times32(x_TI.t(), x_TI).dtype == torch.float32


def test_lengths_share_a_kernel_up_to_the_next_power_of_two() -> None:
    assert blas._alike(form(4096, 896, 512)) == blas._alike(form(8191, 896, 512)) != blas._alike(form(8192, 896, 512))
    assert blas._alike(form(4096, 896, 512)) != blas._alike(form(4096, 904, 512))
    wide = torch.float32
    assert blas._alike(form(896, 512, 4096, out_kind=wide))._replace(left=(), right=()) == blas._alike(
        form(896, 512, 5000, out_kind=wide)
    )._replace(left=(), right=())


def test_only_aligned_matrices_meet_other_kernels() -> None:
    assert form(4096, 896, 512).aligned and form(4096, 896, 512, apart=64).aligned
    assert not form(4096, 896, 512, apart=1).aligned
    assert not form(4096, 897, 512).aligned
    assert not form(4096, 896, 512)._replace(left=(1024, 2)).aligned
