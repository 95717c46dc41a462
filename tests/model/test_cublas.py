"""The calls of cuBLAS, answered by a library of the same names that computes on the CPU and checks what it is told."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.model import blas, cublas

# Of three kernels the second is refused when it is launched.  Matrices lie column by column, as in cuBLAS.
STAND_IN = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef struct { int turn_a, turn_b, epilogue; void *bias; } How;
typedef struct { int kind; uint64_t rows, columns; int64_t apart; } Layout;
typedef struct { uint64_t kernel[8]; size_t workspace; int state; float waves; int reserved[4]; } Result;

int cublasLtCreate(void **made) { *made = malloc(8); return 0; }
int cublasLtMatmulDescCreate(How **made, int compute, int scale) {
    *made = calloc(1, sizeof(How));
    return compute == 68 && scale == 0 ? 0 : 7;
}
int cublasLtMatmulDescDestroy(How *how) { free(how); return 0; }
int cublasLtMatmulDescSetAttribute(How *how, int which, void *value, size_t size) {
    if (which == 3 && size == 4) how->turn_a = *(int *)value;
    else if (which == 4 && size == 4) how->turn_b = *(int *)value;
    else if (which == 7 && size == 4) how->epilogue = *(int *)value;
    else if (which == 8 && size == 8) how->bias = *(void **)value;
    else return 7;
    return 0;
}
int cublasLtMatrixLayoutCreate(Layout **made, int kind, uint64_t rows, uint64_t columns, int64_t apart) {
    Layout layout = {kind, rows, columns, apart};
    *made = malloc(sizeof(Layout));
    **made = layout;
    return apart >= (int64_t)rows ? 0 : 7;
}
int cublasLtMatrixLayoutDestroy(Layout *layout) { free(layout); return 0; }
int cublasLtMatmulPreferenceCreate(void **made) { *made = malloc(8); return 0; }
int cublasLtMatmulPreferenceDestroy(void *wishes) { free(wishes); return 0; }
int cublasLtMatmulPreferenceSetAttribute(void *wishes, int which, void *value, size_t size) {
    if (which == 1) return size == 8 && *(uint64_t *)value == 0 ? 0 : 7;
    return which >= 5 && which <= 8 && size == 4 && *(uint32_t *)value == 16 ? 0 : 7;
}
int cublasLtMatmulAlgoGetHeuristic(void *handle, How *how, Layout *a, Layout *b, Layout *c, Layout *d, void *wishes,
                                   int most, Result *results, int *count) {
    for (int i = 0; i < 3; i++) { memset(results + i, 0, sizeof(Result)); results[i].kernel[0] = i + 1; }
    *count = 3;
    return sizeof(Result) == 96 && most >= 3 ? 0 : 7;
}
int cublasLtMatmulAlgoCheck(void *handle, How *how, Layout *a, Layout *b, Layout *c, Layout *d, uint64_t *kernel,
                            Result *result) { return kernel[0] >= 1 && kernel[0] <= 3 ? 0 : 7; }

static float wide(uint16_t half) { uint32_t bits = (uint32_t)half << 16; float f; memcpy(&f, &bits, 4); return f; }
static uint16_t narrow(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static double at(uint16_t *matrix, Layout *layout, int turned, uint64_t i, uint64_t j) {
    return wide(turned ? matrix[j + i * layout->apart] : matrix[i + j * layout->apart]);
}
int cublasLtMatmul(void *handle, How *how, float *alpha, void *a, Layout *la, void *b, Layout *lb, float *beta, void *c,
                   Layout *lc, void *d, Layout *ld, uint64_t *kernel, void *workspace, size_t room, void *stream) {
    uint64_t m = how->turn_a ? la->columns : la->rows, k = how->turn_a ? la->rows : la->columns;
    uint64_t n = how->turn_b ? lb->rows : lb->columns, other = how->turn_b ? lb->columns : lb->rows;
    if (*alpha != 1 || c != d || room || workspace || k != other || m != ld->rows || n != ld->columns) return 7;
    if (kernel[0] == 2) return 15;
    for (uint64_t j = 0; j < n; j++) for (uint64_t i = 0; i < m; i++) {
        double sum = 0;
        for (uint64_t x = 0; x < k; x++) sum += at(a, la, how->turn_a, i, x) * at(b, lb, how->turn_b, x, j);
        if (how->epilogue == 4) sum += wide(((uint16_t *)how->bias)[i]);
        uint64_t place = i + j * ld->apart;
        if (ld->kind == 0) ((float *)d)[place] = sum + (*beta ? *beta * ((float *)d)[place] : 0);
        else ((uint16_t *)d)[place] = narrow(sum + (*beta ? *beta * wide(((uint16_t *)d)[place]) : 0));
    }
    return 0;
}
"""


class Event:
    """Of a device that takes the same time for everything."""

    now = 0

    def __init__(self, enable_timing: bool):
        self.at = 0

    def record(self) -> None:
        Event.now += 1
        self.at = Event.now

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


def exactly(left: Tensor, right: Tensor, out: Tensor, bias: Tensor | None, *, adds: bool) -> None:
    """What PyTorch would compute, rounded once."""
    found = left.double() @ right.double()
    found = found if bias is None else found + bias.double()
    out.copy_((found + out.double() if adds else found).float().to(out.dtype))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("library")
    (folder / "library.c").write_text(STAND_IN)
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(folder / "library.so"), str(folder / "library.c")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "library.so"))


@pytest.fixture
def launched(stand_in: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, bool]]:
    """Everything on the CPU counts as on a GPU; gives how often each kernel was launched, and whether it ran."""
    seen = Counter[tuple[int, bool]]()
    plainly = cublas.Call.run

    def run(self: cublas.Call, kernel: cublas.Kernel, *matrices: Any) -> bool:
        ran = plainly(self, kernel, *matrices)
        seen[kernel[0], ran] += 1
        return ran

    monkeypatch.setattr(cublas, "library", lambda: stand_in)
    monkeypatch.setattr(cublas.Call, "run", run)
    for name, value in {"_on_gpu": lambda _: True, "_launches": lambda _: True, "_by_torch": exactly}.items():
        monkeypatch.setattr(blas, name, value)
    for name, value in {"_WORTHWHILE": 1, "_races": {}, "_entries": {}}.items():
        monkeypatch.setattr(blas, name, value)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return seen


def drawn(rows: int, columns: int, beside: int) -> Tensor:
    return torch.randn(rows, columns + beside).bfloat16()[:, :columns]


@pytest.mark.parametrize("beside", [0, 8])
def test_every_product_is_the_one_that_was_asked_for(beside: int, launched: Counter[tuple[int, bool]]) -> None:
    torch.manual_seed(beside)
    x_TI, weight_OI, dy_TO = (drawn(*shape, beside) for shape in ((40, 16), (24, 16), (40, 24)))
    h_TO, bias_O, total_OI = drawn(40, 24, 0), drawn(1, 24, 0)[0], torch.randn(24, 16)

    def added32() -> Tensor:
        again = total_OI.clone()
        blas.add_product(again, dy_TO.t(), x_TI)
        return again

    ways = [
        (lambda: blas.multiply(x_TI, weight_OI.t()), x_TI, weight_OI.t(), None, None),
        (lambda: blas.multiply(x_TI, weight_OI.t(), bias_O), x_TI, weight_OI.t(), bias_O, None),
        (lambda: blas.multiply(dy_TO, weight_OI), dy_TO, weight_OI, None, None),
        (lambda: blas.add_to(h_TO.clone(), x_TI, weight_OI.t()), x_TI, weight_OI.t(), None, h_TO),
        (lambda: blas.times32(dy_TO.t(), x_TI), dy_TO.t(), x_TI, None, None),
        (added32, dy_TO.t(), x_TI, None, total_OI),
    ]
    for compute, left, right, bias, before in ways:
        expected = torch.zeros_like(compute()) if before is None else before.clone()
        exactly(left, right, expected, bias, adds=before is not None)
        for _ in range(30):
            assert torch.equal(compute(), expected)
    assert len(blas._races) == len(ways) and all(race.decided for race in blas._races.values())
    assert launched[2, False] == len(ways) and launched[2, True] == 0, "who is refused takes no part"
    assert launched[1, True] == launched[3, True] > len(ways)


def test_a_kernel_that_is_refused_later_leaves_the_product_to_torch(launched: Counter[tuple[int, bool]]) -> None:
    x_TI, weight_OI = drawn(40, 16, 0), drawn(24, 16, 0)
    expected = blas.multiply(x_TI, weight_OI.t())
    (race,) = blas._races.values()
    race.turn, race.decided = (ctypes.c_uint64 * 8)(2), True
    assert torch.equal(blas.multiply(x_TI, weight_OI.t()), expected)
    race.turn = (ctypes.c_uint64 * 8)(9)
    assert torch.equal(blas.multiply(x_TI, weight_OI.t()), expected), "nor is one launched that does not fit"
    assert (9, True) not in launched and (9, False) not in launched


def test_where_there_is_no_library_torch_computes(launched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "library", lambda: None)
    x_TI, weight_OI = drawn(40, 16, 0), drawn(24, 16, 0)
    expected = torch.empty(40, 24, dtype=torch.bfloat16)
    exactly(x_TI, weight_OI.t(), expected, None, adds=False)
    assert torch.equal(blas.multiply(x_TI, weight_OI.t()), expected)
    assert not launched and not blas._races
