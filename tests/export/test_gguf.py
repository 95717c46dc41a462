"""A GGUF file holds the model: read back by the gguf package, tensors, tokens and settings are those of the source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.templates import tokenizer as styled
from safetensors.torch import load_file, save_file

from luthier.base.errors import ModelError
from luthier.export.gguf import Speech, write_gguf
from luthier.export.vocabulary import BYTE, CONTROL, UNUSED, vocabulary
from luthier.model.config import ModelConfig
from luthier.model.load import load_tokenizer

gguf: Any = pytest.importorskip("gguf")
SPEECH = Speech("{{ messages }}", frozenset({1, 2}), False)


def written(source: Path, file: Path, kind: Any = "f16") -> Any:
    write_gguf(source, file, kind, load_tokenizer(ModelConfig(path=str(source))), SPEECH)
    return gguf.GGUFReader(file)


def field(reader: Any, name: str) -> Any:
    return reader.get_field(name).contents()


def tensors(reader: Any) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape([*tensor.shape[::-1]])
        for tensor in reader.tensors
    }


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("shape", ["qwen2", "qwen2-untied", "qwen3", "llama"])
def test_tensors_come_back(shape: str, kind: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model_dir(shape)
    found = tensors(written(source, tmp_path / "m.gguf", kind))
    weights = load_file(source / "model.safetensors")
    assert ("output.weight" in found) == ("lm_head.weight" in weights)
    tolerance = 2e-3 if kind == "f16" else 2e-2
    places = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if "lm_head.weight" in weights:
        places["output.weight"] = "lm_head.weight"
    for place, name in places.items():
        expected = weights[name].float().numpy()
        assert np.abs(found[place] - expected).max() <= tolerance * max(1.0, np.abs(expected).max()), place
    assert len(found) == len(weights)


def test_llama_is_rotated_as_before(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    """Attention scores from the file's rows and llama.cpp's pairs (2f, 2f+1) equal those of transformers."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    source = tiny_model_dir("llama")
    found = tensors(written(source, tmp_path / "m.gguf"))
    weights = load_file(source / "model.safetensors")
    heads, kv, width = 4, 2, 8
    torch.manual_seed(0)
    hidden_TD = torch.randn(5, 32)
    frequency_F = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angle_TF = torch.arange(5)[:, None] * frequency_F
    full_T2F = torch.cat([angle_TF, angle_TF], -1)
    q, k = (weights[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qk")
    q_HTE = (hidden_TD @ q.T).view(5, heads, width).transpose(0, 1)
    k_HTE = (hidden_TD @ k.T).view(5, kv, width).transpose(0, 1)
    q_HTE, k_HTE = apply_rotary_pos_emb(q_HTE[None], k_HTE[None], full_T2F.cos()[None], full_T2F.sin()[None])
    expected = q_HTE[0] @ k_HTE[0].repeat_interleave(heads // kv, 0).transpose(1, 2)

    def turned(rows: np.ndarray, count: int) -> torch.Tensor:
        pairs = (hidden_TD @ torch.tensor(rows, dtype=torch.float32).T).view(5, count, width // 2, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        cos, sin = angle_TF.cos()[:, None], angle_TF.sin()[:, None]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).view(5, count, width).transpose(0, 1)

    scores = turned(found["blk.0.attn_q.weight"], heads) @ turned(found["blk.0.attn_k.weight"], kv).repeat_interleave(
        heads // kv, 0
    ).transpose(1, 2)
    assert torch.allclose(scores, expected, atol=0.02, rtol=0.01)


def test_sizes_tokens_and_template(nano_dir: Path, tmp_path: Path) -> None:
    reader = written(nano_dir, tmp_path / "m.gguf", "q8_0")
    assert field(reader, "general.architecture") == "qwen2"
    assert field(reader, "qwen2.block_count") == 8 and field(reader, "qwen2.attention.head_count_kv") == 2
    assert field(reader, "qwen2.context_length") == 1024 and field(reader, "qwen2.rope.freq_base") == 10000.0
    assert field(reader, "tokenizer.ggml.model") == "gpt2" and field(reader, "tokenizer.ggml.pre") == "qwen2"
    tokenizer = load_tokenizer(ModelConfig(path=str(nano_dir)))
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert tokens == tokenizer.convert_ids_to_tokens(list(range(6144)))
    kinds = field(reader, "tokenizer.ggml.token_type")
    assert [number for number, kind in enumerate(kinds) if kind == CONTROL] == [0, 1, 2]
    assert (
        field(reader, "tokenizer.ggml.eos_token_id") == 2
        and field(reader, "tokenizer.chat_template") == SPEECH.template
    )
    assert field(reader, "tokenizer.ggml.add_bos_token") is False
    assert len(field(reader, "tokenizer.ggml.merges")) == 5885
    assert (tmp_path / "m.gguf").stat().st_size < (nano_dir / "model.safetensors").stat().st_size * 0.6


def test_rows_beyond_the_vocabulary_are_unused(tiny_model_dir: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model_dir())))
    words = vocabulary(tokenizer, len(tokenizer) + 3)
    assert words.pre == "qwen2" and words.kinds[-3:] == (UNUSED,) * 3 and len(set(words.tokens)) == len(words.tokens)


def test_sentencepiece_like_tokenizer() -> None:
    words = vocabulary(styled("llama2-spaced"), len(styled("llama2-spaced")))
    assert words.model == "llama" and words.space_prefix and words.scores is not None
    assert sum(kind == BYTE for kind in words.kinds) == 256
    assert max(words.scores) == 0.0 and len(words.scores) == len(words.tokens)


def test_llama3_slows_frequencies_down(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    found = tensors(written(tiny_model_dir("llama", rope_parameters=rope), tmp_path / "m.gguf"))
    factors = found["rope_freqs.weight"]
    assert factors.shape == (4,) and factors.min() >= 1.0 - 1e-6 and factors.max() == pytest.approx(8.0)


def test_what_llama_cpp_would_run_differently_is_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    for shape, word in (("gemma2", "type gemma2"), ("mistral", "slides"), ("gpt2", "type gpt2")):
        with pytest.raises(ModelError, match=word):
            written(tiny_model_dir(shape), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_numbers_beyond_float16_are_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    source = tmp_path / "model"
    shutil.copytree(tiny_model_dir("qwen2-untied"), source)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e5
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="float16 cannot hold"):
        written(source, tmp_path / "m.gguf")


def test_tokenizer_with_a_pattern_of_its_own_is_refused(tiny_model_dir: Callable[..., Path]) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model_dir())))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    with pytest.raises(ModelError, match="way of its own"):
        vocabulary(tokenizer, 400)
