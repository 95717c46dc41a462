"""What is rounded and stored opens again, here and (where it knows the format) in transformers, with equal numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.base.errors import MissingExtra, ModelError
from luthier.export.config import QuantMethod
from luthier.export.quantize import Rounded, quantize
from luthier.model.config import ModelConfig, Quant
from luthier.model.load import load_model, load_tokenizer

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 80, 33, 7, 200, 41, 9]])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
]


def written(source: Path, out: Path, method: QuantMethod, bits: int) -> Path:
    out.mkdir()
    quantize(source, out, Rounded(method, bits, 32, CPU, [[5, 80, 33, 7]] * 4))
    load_tokenizer(ModelConfig(path=str(source))).save_pretrained(out)
    return out


def logits(folder: Path, **settings: Any) -> torch.Tensor:
    config = ModelConfig(path=str(folder), **settings)
    model = load_model(config, CPU, tokenizer=load_tokenizer(config), trained=False)
    with torch.no_grad():
        return model.network(IDS).logits[0].float()


@pytest.mark.parametrize(("method", "bits"), [("bnb", 4), ("bnb", 8), ("torchao", 8), ("hqq", 4), ("hqq", 8)])
def test_rounded_model_opens_here_and_is_smaller(
    method: QuantMethod, bits: int, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip({"bnb": "bitsandbytes"}.get(method, method))
    source = tiny_model_dir("qwen2-untied", hidden_size=64, intermediate_size=256)
    folder = written(source, tmp_path / "rounded", method, bits)
    before, after = logits(source), logits(folder)
    agreement = torch.nn.functional.cosine_similarity(before, after).min()
    assert 0.999 < agreement < 1 if bits == 8 else 0.8 < agreement < 0.9999
    size = (folder / "model.safetensors").stat().st_size
    assert size < (source / "model.safetensors").stat().st_size * (0.75 if bits == 8 else 0.65)


@pytest.mark.parametrize(("method", "bits"), [("bnb", 4), ("torchao", 8)])
def test_rounded_model_opens_in_plain_transformers(
    method: QuantMethod, bits: int, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip({"bnb": "bitsandbytes"}.get(method, method))
    from transformers import AutoModelForCausalLM

    # On processors with bfloat16 matrix instructions bitsandbytes takes weights of whole blocks of 32 rows only.
    shape = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}
    folder = written(tiny_model_dir("qwen2", **shape), tmp_path / "rounded", method, bits)
    network = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    with torch.no_grad():
        plain = network(IDS).logits[0].float()
    # bitsandbytes' own 4-bit layers compute in bfloat16.
    assert torch.nn.functional.cosine_similarity(plain, logits(folder)).min() > 0.999


@pytest.mark.parametrize("shape", ["qwen2", "llama", "gemma2"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_hqq_file_holds_what_loading_in_few_bits_gives(
    shape: str, bits: int, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("hqq")
    source = tiny_model_dir(shape)
    folder = written(source, tmp_path / "rounded", "hqq", bits)
    held = logits(source, quant=Quant(method="hqq", bits=bits, group_size=32))
    assert torch.allclose(held, logits(folder), atol=1e-5)


def test_rounded_twice_is_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    folder = written(tiny_model_dir("qwen2"), tmp_path / "rounded", "hqq", 4)
    with pytest.raises(ModelError, match="rounded already"):
        logits(folder, quant=Quant(bits=4))


def test_hqq_file_with_a_missing_weight_is_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    from safetensors.torch import load_file, save_file

    folder = written(tiny_model_dir("qwen2"), tmp_path / "rounded", "hqq", 4)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing or unknown: model\.norm\.weight"):
        logits(folder)


def test_missing_library_names_its_extra(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for module, method, extra in (
        ("gptqmodel", "gptq", "gptq"),
        ("llmcompressor", "llmcompressor", "compress"),
        ("torchao.quantization", "torchao", "export"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtra, match=rf"luthier\[{extra}\]"):
            quantize(tiny_model_dir("qwen2"), tmp_path, Rounded(method, 8, 32, CPU, [[1]]))  # pyright: ignore


def test_int4_of_torchao_needs_a_gpu(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ModelError, match="NVIDIA GPU"):
        quantize(tiny_model_dir("qwen2"), tmp_path, Rounded("torchao", 4, 32, CPU, []))


def test_config_of_a_rounded_model_names_its_method(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    folder = written(tiny_model_dir("qwen2"), tmp_path / "rounded", "hqq", 3)
    held = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert held == {"quant_method": "hqq", "bits": 3, "group_size": 32, "written_by": "luthier"}
