"""Attention on a CUDA device: PyTorch's operators called as they are give what its public functions give.

pytest -m gpu -n 0 -s tests/gpu/test_cuda_attention.py
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from itertools import accumulate
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from luthier.model.attention import Packing, within

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda", 0)
MIXED, EVEN = (37, 300, 5, 130), (256, 256, 256)
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def packing(lengths: tuple[int, ...]) -> Packing:
    return Packing.of(lengths, tuple(accumulate(lengths, initial=0)), DEVICE)


def result(
    attend: Attend, lengths: tuple[int, ...], width: int = 64, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """The output and the gradients of queries, keys and values."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    tokens = sum(lengths)
    heads = [torch.randn(tokens, count, width, device=DEVICE, generator=generator) for count in (6, 2, 2, 6)]
    *leaves, dout = (part.to(torch.bfloat16).to(dtype) for part in heads)
    q, k, v = (leaf.requires_grad_() for leaf in leaves)
    out = attend(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), dout)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Bit for bit, but for the queries' gradient, which is added up in an order that is not always the same."""
    (out, dq, *more), (out_theirs, dq_theirs, *more_theirs) = ours, theirs
    assert same([out, *more], [out_theirs, *more_theirs])
    assert float((dq.float() - dq_theirs.float()).norm() / dq_theirs.float().norm()) < 2e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 64])
def test_mixed_lengths_give_the_bits_of_the_public_function(window: int | None, causal: bool) -> None:
    where, before = packing(MIXED), -1 if window is None else window - 1

    def public(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        offsets, longest, sides = where.offsets_S1, max(MIXED), (before, 0 if causal else before)
        found = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=0.1, window_size=sides, **GROUPED)
        return cast(Tensor, found)

    def own(*parts: Tensor) -> Tensor:
        return within(*parts, where, scaling=0.1, window=window, causal=causal)

    assert_equal(result(own, MIXED), result(public, MIXED))


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="cuDNN's kernel is for Hopper"
)
@pytest.mark.parametrize("causal", [True, False])
def test_one_length_gives_the_bits_of_the_public_function(causal: bool) -> None:
    where, rows = packing(EVEN), (len(EVEN), EVEN[0])

    def public(*parts: Tensor) -> Tensor:
        q, k, v = (part.unflatten(0, rows).transpose(1, 2) for part in parts)
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            out = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.1, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    assert_equal(result(lambda *parts: within(*parts, where, scaling=0.1, causal=causal), EVEN), result(public, EVEN))


@pytest.fixture
def deterministic() -> Generator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("lengths", [MIXED, EVEN], ids=["mixed", "even"])
def test_it_repeats_where_that_is_asked_for(lengths: tuple[int, ...]) -> None:
    where = packing(lengths)
    first, *more = (result(lambda *parts: within(*parts, where), lengths) for _ in range(5))
    assert all(same(first, again) for again in more)


@pytest.mark.parametrize("width", [36, 64, 320])
@pytest.mark.parametrize("lengths", [MIXED, EVEN], ids=["mixed", "even"])
def test_any_width_is_computed(lengths: tuple[int, ...], width: int) -> None:
    where = packing(lengths)
    rounded, exact = (
        result(lambda *parts: within(*parts, where), lengths, width, dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    for ours, truth in zip(rounded, exact, strict=True):
        assert float((ours.float() - truth).norm() / truth.norm()) < 0.01
