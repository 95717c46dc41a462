"""Files written tensor by tensor are those that safetensors itself writes."""

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.model.tensorfile import write_tensors

MIXED = {
    "b": torch.randn(3, 5, dtype=torch.bfloat16),
    "a": torch.randn(7),
    "scalar": torch.tensor(3.0),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "counts": torch.arange(2),
    "none": torch.zeros(0, 4),
    "flag": torch.tensor([True, False]),
    "wide": torch.randn(2, dtype=torch.float64),
    "half": torch.randn(2, dtype=torch.float16),
    "eight": torch.zeros(3, dtype=torch.float8_e4m3fn),
    "short": torch.arange(3, dtype=torch.int32),
    '名 "quoted"': torch.ones(1),
}


@pytest.mark.parametrize("names", [list(MIXED), ["a"], ["none"]])
def test_the_bytes_are_those_of_safetensors(tmp_path: Path, names: list[str]):
    tensors = {name: MIXED[name] for name in names}
    hashed = write_tensors(tmp_path / "ours", tensors, Tensor.detach)
    save_file(tensors, tmp_path / "theirs")
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes() and hashed == sha256(content).hexdigest()
    loaded = load_file(tmp_path / "ours")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_tensors_that_are_not_contiguous_or_have_a_graph_are_written_as_they_read(tmp_path: Path):
    weight = torch.randn(4, 6, requires_grad=True)
    write_tensors(tmp_path / "file", {"t": weight.t()}, Tensor.detach)
    assert torch.equal(load_file(tmp_path / "file")["t"], weight.detach().t())


def test_each_tensor_is_made_whole_when_its_turn_comes(tmp_path: Path):
    asked: list[str] = []

    def whole(tensor: Tensor) -> Tensor:
        asked.append(str(tensor.dtype))
        return tensor

    write_tensors(tmp_path / "file", {"a": MIXED["b"], "z": MIXED["wide"], "b": MIXED["a"]}, whole)
    assert asked == ["torch.float64", "torch.float32", "torch.bfloat16"]
