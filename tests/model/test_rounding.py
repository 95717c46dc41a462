"""Weights in few bits, format by format: what is read back, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rounded import BNB, CPU, WAYS, WIDE, adapted, apart, gradients, load, twin, ways
from torch import Tensor

from luthier.base.errors import MissingExtra, ModelError
from luthier.model import rounding
from luthier.model.config import Lora, Quant


@BNB
@pytest.mark.parametrize("shape", [(16, 64), (48, 32), (7, 96), (5, 7), (1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", ways("nf4", "fp4"))
def test_four_bits_mean_the_same_in_every_shape(quant: Quant, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """The kernel for CPUs is wrong by 20 to 40 % where blocks run over the ends of rows (bitsandbytes 0.50.2)."""
    four: Any = rounding.rounding(quant, CPU)
    torch.manual_seed(0)
    weight = torch.randn(shape)
    held = four.pack(weight.to(dtype))
    dense, decoded = four.dense(held, *shape, dtype), four.decoded(held, *shape)
    assert apart(dense, decoded) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert apart(dense, weight) < 0.17


@BNB
def test_kernels_that_read_four_bits_back_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, held: Any, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return self.decoded(held, rows, columns).roll(1)

    monkeypatch.setattr(rounding.FourBit, "dense", wrong)
    with pytest.raises(ModelError, match=r"reads its 4 bits back wrong on this cpu.*--quant_method hqq") as caught:
        rounding.rounding(WAYS["nf4"], CPU)
    assert caught.value.code == "wrong_rounding"


@pytest.mark.parametrize(("quant", "package"), [(Quant(bits=4), "bitsandbytes"), (Quant(method="hqq"), "hqq")])
def test_a_missing_library_names_its_extra(quant: Quant, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounding.bitsandbytes.cache_clear(), rounding._hqq.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "hqq.core.quantize", None)
    with pytest.raises(MissingExtra, match=rf"{package}.*luthier\[quant\]"):
        rounding.rounding(quant, CPU)


def test_eetq_needs_a_gpu_and_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"GPUs only.*--quant_method hqq --quant_bits 8"):
        rounding.rounding(Quant(method="eetq"), CPU)
    rounding._eetq.cache_clear()
    monkeypatch.setitem(sys.modules, "EETQ", None)
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ModelError, match=r"EETQ's kernels are not here.*--quant_method hqq --quant_bits 8"):
        rounding.rounding(Quant(method="eetq"), torch.device("cuda", 0))


def test_eetq_is_called_as_its_kernels_want(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels stood in for by what they compute: float16 in and out, weights [I, O], one scale a column."""

    def quant_weights(weight_IO: Tensor, kind: torch.dtype, raw: bool) -> tuple[Tensor, Tensor]:
        assert weight_IO.dtype == torch.float16 and weight_IO.is_contiguous() and kind == torch.int8 and not raw
        scale_O = weight_IO.abs().amax(0) / 127
        return (weight_IO / scale_O).round().to(torch.int8), scale_O

    def gemm(x_TI: Tensor, codes_IO: Tensor, scale_O: Tensor) -> Tensor:
        assert x_TI.dtype == torch.float16 and x_TI.ndim == 2
        return (x_TI.float() @ (codes_IO.float() * scale_O.float())).half()

    kernels = SimpleNamespace(quant_weights=quant_weights, w8_a16_gemm=gemm)
    monkeypatch.setattr(rounding, "rounding", lambda *_: rounding.Eetq(kernels))
    quant = Quant(method="eetq")
    folder = tiny_model_dir("qwen2", **WIDE, intermediate_size=128)
    model = adapted(load(folder, quant, "bfloat16"), Lora(rank=4))
    monkeypatch.setattr(rounding, "rounding", lambda *_: rounding.Eetq(kernels))
    plain = adapted(twin(folder, quant), Lora(rank=4))
    assert model.note and "4 layers are not rounded, EETQ's kernel wants multiples of 64" in model.note
    found, expected = gradients(model), gradients(plain)
    assert all(apart(found[name], expected[name]) < 0.1 for name in expected)
