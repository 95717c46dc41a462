"""Matrix products: PyTorch's, or on a GPU the fastest of cuBLAS's kernels that gives the very same numbers.

cuBLAS guesses which of its kernels suits a product, and guesses for a cool card.  In a training step, where heat and
power set the pace, another one can be several hundredths faster (docs/performance.md).  So the kernels take turns in
the steps themselves until it is known which is the fastest there.  A kernel takes part only where every bit of its
result is the bit of PyTorch's own call: who wins changes the time, never a number.

Legend: M, N, K as in `model.cublas`; O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.model import cublas
from luthier.model.counted import counting
from luthier.model.cublas import Call, Form, Kernel
from luthier.model.race import Race

_WORTHWHILE = 2 * 10**10
"""Operations below which a product is left to PyTorch: some 30 microseconds."""

_ROOM = 2**25
"""Bytes of each of the two results that are compared: as many rows as fit."""

_FORMS = 4096
"""Forms that are remembered; packed batches have ever new lengths."""


def multiply(left_MK: Tensor, right_KN: Tensor, bias_N: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """left right + bias, in their type.  [M, K] [K, N] -> [M, N]"""
    out_MN = left_MK.new_empty(left_MK.shape[0], right_KN.shape[1]) if out is None else out
    return _compute(left_MK, right_KN, out_MN, bias_N)


def add_to(total_MN: Tensor, left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """total += left right, in place, in their type."""
    return _compute(left_MK, right_KN, total_MN, adds=True)


def times32(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """left right, summed and kept in float32.  [M, K] [K, N] -> [M, N]"""
    if not _keeps32(left_MK):
        return (left_MK @ right_KN).float()
    return _compute(left_MK, right_KN, left_MK.new_empty(len(left_MK), right_KN.shape[1], dtype=torch.float32))


def add_product(total_MN: Tensor, left_MK: Tensor, right_KN: Tensor) -> None:
    """total (float32) += left right, in place."""
    if not _keeps32(left_MK):
        total_MN += left_MK @ right_KN
    else:
        _compute(left_MK, right_KN, total_MN, adds=True)


def column_sums(left_TO: Tensor) -> Tensor:
    """Summed and kept in float32; as a product it takes half the time of a reduction on a GPU.  [O]"""
    if _on_gpu(left_TO) and left_TO.dtype != torch.float32:
        return times32(left_TO.t(), left_TO.new_ones(len(left_TO), 1))[:, 0]
    return left_TO.sum(0, dtype=torch.float32)


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _keeps32(left_MK: Tensor) -> bool:
    """Whether a product of such numbers can be written in float32 as it is summed."""
    return counting() or (_on_gpu(left_MK) and left_MK.dtype != torch.float32)


def _compute(
    left_MK: Tensor, right_KN: Tensor, out_MN: Tensor, bias_N: Tensor | None = None, *, adds: bool = False
) -> Tensor:
    if counting():
        return out_MN
    matrices = left_MK, right_KN, out_MN
    entry = None
    if _on_gpu(left_MK) and 2 * out_MN.numel() * left_MK.shape[1] >= _WORTHWHILE:
        entry = _entry(Form.of(*matrices, adds=adds, biased=bias_N is not None))
    if entry is None or not _launches(matrices):
        _by_torch(*matrices, bias_N, adds=adds)
        return out_MN
    race, call = entry
    if not race.ways:
        equal = _equal(call, *matrices, bias_N)
        if equal is not None:
            race.enter(equal)
        return out_MN
    lap = race.start(_tokens(call.form))
    if race.turn is None or not call.fits(race.turn) or not call.run(race.turn, *matrices, bias_N):
        _by_torch(*matrices, bias_N, adds=adds)
    if lap is not None:
        lap.end.record()
    return out_MN


def _by_torch(left_MK: Tensor, right_KN: Tensor, out_MN: Tensor, bias_N: Tensor | None, *, adds: bool) -> None:
    kind: dict[str, Any] = {} if out_MN.dtype == left_MK.dtype else {"out_dtype": out_MN.dtype}
    if adds or bias_N is not None:
        torch.addmm(out_MN if bias_N is None else bias_N, left_MK, right_KN, out=out_MN, **kind)
    else:
        torch.mm(left_MK, right_KN, out=out_MN, **kind)


_races: dict[Form, Race] = {}
_entries: dict[Form, tuple[Race, Call] | None] = {}


def _entry(form: Form) -> tuple[Race, Call] | None:
    """The race that decides about a product, and how its kernels are called; None where PyTorch is to compute it."""
    if form not in _entries:
        if len(_entries) >= _FORMS:
            _entries.clear()
        _entries[form] = (_races.setdefault(_alike(form), Race()), Call(form)) if _has_choice(form) else None
    return _entries[form]


def _has_choice(form: Form) -> bool:
    return form.kind in (torch.bfloat16, torch.float16) and form.aligned and cublas.library() is not None


def _launches(matrices: Sequence[Tensor]) -> bool:
    """Whether kernels can be launched for matrices that lie here: they go to the current device."""
    here = torch.cuda.current_device()
    return all(matrix.get_device() == here and matrix.data_ptr() % cublas.ALIGNMENT == 0 for matrix in matrices)


def _tokens(form: Form) -> int:
    """How many there are: the rows of an output or of its gradient, or what a weight's gradient is summed over."""
    return form.m if form.out_kind == form.kind else form.k


def _alike(form: Form) -> Form:
    """One form for all that share a race: the number of tokens counts to the next power of two."""
    tokens = _tokens(form).bit_length()
    return form._replace(m=tokens) if form.out_kind == form.kind else form._replace(k=tokens)


def _equal(call: Call, left_MK: Tensor, right_KN: Tensor, out_MN: Tensor, bias_N: Tensor | None) -> list[Kernel] | None:
    """Leave the product to PyTorch, and give the kernels that find the same bits in the first rows.

    In which order a kernel adds up is the same for every row.  None where the numbers tell nothing.
    """
    form = call.form
    rows = min(form.m, max(1, _ROOM // (form.n * out_MN.element_size())))
    start_MN = out_MN[:rows].clone()
    _by_torch(left_MK, right_KN, out_MN, bias_N, adds=form.adds)
    expected_MN, got_MN = out_MN[:rows], torch.empty_like(start_MN)
    if torch.equal(expected_MN, start_MN) if form.adds else not expected_MN.any():
        return None
    some = Call(Form.of(left_MK[:rows], right_KN, got_MN, adds=form.adds, biased=form.biased))
    bits = torch.int16 if got_MN.element_size() == 2 else torch.int32
    found: list[Kernel] = []
    for kernel in filter(some.fits, call.kernels()):
        if form.adds:
            got_MN.copy_(start_MN)
        ran = some.run(kernel, left_MK[:rows], right_KN, got_MN, bias_N)
        if ran and torch.equal(got_MN.view(bits), expected_MN.view(bits)):
            found.append(kernel)
    return found
