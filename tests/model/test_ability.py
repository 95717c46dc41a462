from __future__ import annotations

import pytest
import torch

from luthier.model import ability
from luthier.model.load import arithmetic_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Stand in for a GPU of some compute capability."""

    def stand_in(capability: tuple[int, int]) -> None:
        def bf16(including_emulation: bool = True) -> bool:
            return including_emulation or capability >= (8, 0)

        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", bf16)

    return stand_in


def test_an_old_gpu_takes_the_plain_path_and_says_so(gpu, monkeypatch):
    gpu((7, 0))
    monkeypatch.setattr(ability, "find_spec", lambda name: object())
    assert ability.kernels(GPU) == "Tesla V100 is older than the kernels"
    assert arithmetic_dtype("auto", GPU) == torch.float32
    told = ability.slow_there(torch.bfloat16, None, GPU)
    assert told is not None and "emulates bfloat16" in told and "--torch_dtype float32" in told
    assert not ability.has_float8(GPU)


def test_a_gpu_without_8_bit_products_says_that_fp8_saves_memory_only(gpu):
    gpu((8, 0))
    assert arithmetic_dtype("auto", GPU) == torch.bfloat16
    assert ability.slow_there(torch.bfloat16, None, GPU) is None
    told = ability.slow_there(torch.bfloat16, "fp8", GPU)
    assert told is not None and "saves memory there, but no time" in told


def test_a_new_gpu_has_nothing_to_say(gpu):
    gpu((9, 0))
    assert ability.has_float8(GPU) and ability.slow_there(torch.bfloat16, "fp8", GPU) is None


def test_kernels_need_triton_and_a_gpu(gpu, monkeypatch):
    gpu((9, 0))
    monkeypatch.setattr(ability, "find_spec", lambda name: None)
    assert ability.kernels(GPU) == "the package triton is not installed"
    assert ability.kernels(CPU) == "there are no kernels for a cpu"
    assert ability.slow_there(torch.bfloat16, "fp8", CPU) is None
