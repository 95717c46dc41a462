"""Every GPU kernel against its plain form: awkward sizes, strided memory, bfloat16 and float32.

pytest -m gpu -n 0 -s tests/gpu
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.model.pointwise import Around, LowRank, Plain, Rider

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TYPES = [torch.float32, torch.bfloat16]
PLAIN = Plain()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def fused() -> Plain:
    from luthier.model.kernels import Fused

    return Fused()  # pyright: ignore[reportReturnType]


def strided(*shape: int, dtype: torch.dtype, spare: int = 5) -> Tensor:
    """Random numbers in rows that lie further apart than they are long."""
    wide = torch.randn(*shape[:-1], shape[-1] + spare, device="cuda", dtype=dtype)
    return wide[..., : shape[-1]]


def poisoned(like: Tensor) -> Tensor:
    return torch.full_like(like, float("nan"))


def close(got: Tensor, expected: Tensor) -> None:
    coarse = torch.bfloat16 in (got.dtype, expected.dtype)
    torch.testing.assert_close(got, expected, rtol=2e-2 if coarse else 1e-5, atol=2e-2 if coarse else 2e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 8), (77, 896), (1500, 100), (33, 3584), (19, 3, 64), (5, 7, 128)])
@pytest.mark.parametrize("moves", [True, False])
def test_norm_and_its_gradient(shape: tuple[int, ...], dtype: torch.dtype, moves: bool) -> None:
    h, dx, around = (strided(*shape, dtype=dtype) for _ in range(3))
    weight = torch.randn(shape[-1], device="cuda")
    outs = [poisoned(h), poisoned(h)]
    for functions, out in zip((PLAIN, fused()), outs, strict=True):
        functions.norm(out, h, weight, 1e-6)
    close(outs[1], outs[0])
    if len(shape) == 2:
        out, also = poisoned(h), poisoned(strided(*shape, dtype=dtype, spare=3))
        fused().norm(out, h, weight, 1e-6, also)
        assert torch.equal(also, h) and torch.equal(out, outs[1])
    for with_x in (True, False):
        flat = len(shape) == 2
        seen: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for functions in (PLAIN, fused()):
            dh, x = poisoned(h), poisoned(h)
            dweight = functions.norm_gradient(
                dh, x if with_x and flat else None, dx, h, weight, 1e-6, around if flat else None, weight_moves=moves
            )
            seen.append((dh, x, dweight))
        close(seen[1][0], seen[0][0])
        if with_x and flat:
            close(seen[1][1], seen[0][1])
        if moves:
            assert seen[0][2] is not None and seen[1][2] is not None
            torch.testing.assert_close(seen[1][2], seen[0][2], rtol=1e-3, atol=1e-3)


def test_copies_between_strides() -> None:
    x = strided(31, 3584, dtype=torch.bfloat16)
    out = poisoned(strided(31, 3584, dtype=torch.bfloat16, spare=64))
    fused().copy(out, x)
    assert torch.equal(out, x)


def test_a_gradient_may_replace_what_it_is_made_of() -> None:
    h, dx = strided(41, 6, 64, dtype=torch.bfloat16), strided(41, 6, 64, dtype=torch.bfloat16)
    weight, expected = torch.randn(64, device="cuda"), torch.empty(41, 6, 64, device="cuda", dtype=torch.bfloat16)
    PLAIN.norm_gradient(expected, None, dx, h, weight, 1e-6, None, weight_moves=False)
    fused().norm_gradient(dx, None, dx, h, weight, 1e-6, None, weight_moves=False)
    close(dx, expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "groups", "width"), [(28, 4, 128), (14, 2, 64), (3, 1, 8)])
def test_rotation_and_its_gradient(heads: int, groups: int, width: int, dtype: torch.dtype) -> None:
    tokens = 53
    angle = torch.randn(tokens, width, device="cuda")
    cos, sin = angle.cos(), angle.sin()
    buffer = strided(tokens, (heads + 2 * groups) * width, dtype=dtype).unflatten(1, (-1, width))
    queries_keys = buffer[:, : heads + groups]
    expected = queries_keys.clone()
    PLAIN.rotate(expected, cos, sin)
    values = buffer[:, heads + groups :].clone()
    fused().rotate(queries_keys, cos, sin)
    close(queries_keys, expected)
    assert torch.equal(buffer[:, heads + groups :], values)
    dq, dk, dv = (torch.randn(tokens, n, width, device="cuda", dtype=dtype) for n in (heads, groups, groups))
    outs = [strided(tokens, (heads + 2 * groups) * width, dtype=dtype).unflatten(1, (-1, width)) for _ in range(2)]
    for functions, out in zip((PLAIN, fused()), outs, strict=True):
        functions.rotate_back(out, dq, dk, dv, cos, sin)
    close(outs[1], outs[0])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (37, 4864), (300, 1000), (9, 18944), (700, 200)])
@pytest.mark.parametrize(("rank", "rank_down"), [(0, 0), (32, 16), (6, 0), (0, 20), (64, 64)])
def test_swiglu_and_its_gradient(tokens: int, width: int, rank: int, rank_down: int, dtype: torch.dtype) -> None:
    gate_up, dact = strided(tokens, 2 * width, dtype=dtype, spare=8), strided(tokens, width, dtype=dtype)
    left, right = strided(tokens, rank, dtype=dtype) * 0.3, strided(2 * width, rank, dtype=dtype) * 0.3
    dleft, onto = strided(tokens, rank_down, dtype=dtype) * 0.3, strided(rank_down, width, dtype=dtype) * 0.3
    lacks = LowRank(left, right) if rank else None
    dact_lacks = LowRank(dleft, onto.t()) if rank_down else None
    results: list[tuple[Tensor, ...]] = []
    for functions in (PLAIN, fused()):
        out, act = (poisoned(strided(tokens, width, dtype=dtype)) for _ in range(2))
        dgate_up = poisoned(gate_up)
        functions.swiglu(out, gate_up, lacks)
        functions.swiglu_gradient(dgate_up, act, dact, gate_up, lacks, dact_lacks, None)
        if lacks is dact_lacks is None:
            in_place = gate_up.clone(), dact.clone()
            functions.swiglu_gradient(in_place[0], in_place[1], in_place[1], in_place[0], None, None, None)
            assert torch.equal(in_place[0], dgate_up) and torch.equal(in_place[1], act)
        results.append((out, act, dgate_up))
    for got, expected in zip(results[1], results[0], strict=True):
        assert apart(got, expected) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_adapters_go_to_their_seats(dtype: torch.dtype) -> None:
    shapes = [(16, 3584), (3584, 16), (7, 100), (5000, 3)]
    matrices = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    rooms = [torch.zeros(rows + 1, columns + 9, device="cuda", dtype=dtype) for rows, columns in shapes]
    scales = [1.0, 2.0, 0.3, 1.0]
    riders = [
        Rider(matrix, scale, room[: len(matrix), : matrix.shape[1]])
        for matrix, scale, room in zip(matrices, scales, rooms, strict=True)
    ]
    board = fused().board(riders)
    for again in range(3):
        board()
        for room, matrix, scale in zip(rooms, matrices, scales, strict=True):
            expected = torch.zeros_like(room)
            expected[: len(matrix), : matrix.shape[1]] = matrix.detach() * scale
            assert torch.equal(room, expected)
        with torch.no_grad():
            for matrix in matrices:
                matrix.neg_()  # an optimizer moves them where they lie
        if again == 1:
            matrices[0].data = matrices[0].data * 2  # and they may come to lie elsewhere


def apart(got: Tensor, expected: Tensor) -> float:
    """Relative to the whole of what was expected."""
    return float((got.float() - expected.float()).norm() / expected.float().norm()) if expected.numel() else 0.0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (37, 4864), (300, 1000), (700, 200)])
@pytest.mark.parametrize("ranks", [(16, 16, 16), (8, 0, 4), (0, 3, 0), (64, 40, 20)])
@pytest.mark.parametrize("lacking", [False, True])
def test_adapters_around_the_activation(
    tokens: int, width: int, ranks: tuple[int, int, int], lacking: bool, dtype: torch.dtype
) -> None:
    gate, up, down = ranks
    gate_up, dact = strided(tokens, 2 * width, dtype=dtype, spare=8), strided(tokens, width, dtype=dtype)
    u, du = strided(tokens, gate + up, dtype=dtype), strided(tokens, down, dtype=dtype)
    lacks = LowRank(u, strided(2 * width, gate + up, dtype=dtype) * 0.3) if lacking else None
    dact_lacks = LowRank(du, strided(width, down, dtype=dtype) * 0.3) if lacking and down else None
    found: list[tuple[Tensor, ...]] = []
    for functions in (PLAIN, fused()):
        dgate_up = poisoned(gate_up)
        summed = functions.swiglu_gradient(dgate_up, None, dact, gate_up, lacks, dact_lacks, Around(u, (gate, up), du))
        assert summed is not None
        found.append((dgate_up, summed.da_KF, *summed.dbs_FK))
    for got, expected in zip(found[1], found[0], strict=True):
        assert got.shape == expected.shape
        assert apart(got, expected) < (2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 7), (40, 400), (130, 6144), (20, 151936)])
def test_score_and_its_gradient(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(rows, vocabulary, device="cuda") * 4).to(dtype)
    targets = torch.randint(vocabulary, (rows,), device="cuda")
    targets[: rows // 2] = logits[: rows // 2].argmax(dim=1)
    expected, got = PLAIN.score(logits, targets), fused().score(logits, targets)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-5, atol=1e-5)
    assert torch.equal(got[1], expected[1]), "of equal logits the first counts"
    assert rows == 1 or got[1].any()
    for dlogprobs in (None, torch.randn(rows, device="cuda")):
        outs = logits.clone(), logits.clone()
        PLAIN.score_gradient(outs[0], targets, expected[2], dlogprobs)
        fused().score_gradient(outs[1], targets, got[2], dlogprobs)
        close(outs[1], outs[0])


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no 8-bit floats here"
)
@pytest.mark.parametrize(("tokens", "width"), [(3, 16), (50, 3584), (7, 37888)])
def test_rounding_rows_to_eight_bits(tokens: int, width: int) -> None:
    x = strided(tokens, width, dtype=torch.bfloat16) * torch.rand(tokens, 1, device="cuda").bfloat16() * 100
    x[0] = 0
    for columns in (None, torch.rand(width, device="cuda") + 0.1):
        expected, got = PLAIN.round_rows(x, columns), fused().round_rows(x, columns)
        torch.testing.assert_close(got[1], expected[1])
        values = [codes.float() * scale[:, None] for codes, scale in (got, expected)]
        # Ties may fall either way where a quotient was rounded differently; never by more than one step.
        torch.testing.assert_close(values[0], values[1], rtol=0.13, atol=1e-6)
        assert (values[0] == values[1]).float().mean() > 0.999


def test_transposing_bytes() -> None:
    codes = torch.randn(300, 1040, device="cuda").to(torch.float8_e4m3fn)
    assert torch.equal(fused().transpose(codes).view(torch.int8), codes.view(torch.int8).t())


def test_no_rows_are_no_error() -> None:
    logits, nothing = torch.empty(0, 50, device="cuda"), torch.empty(0, dtype=torch.int64, device="cuda")
    logprobs, correct, norm = fused().score(logits, nothing)
    fused().score_gradient(logits, nothing, norm, None)
    assert len(logprobs) == len(correct) == 0
