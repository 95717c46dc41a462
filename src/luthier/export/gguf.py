"""A model as one GGUF file, for llama.cpp and what is built on it: Llama, Mistral, Qwen2 and Qwen3 shapes.

Matrices become float16 or q8_0 (32 weights share a scale, each in 8 bits), everything else float32.  The file is
written tensor by tensor and then read back: every tensor must be what it was, up to the rounding of its type.

Legend: O output width, I input width, H heads, F half of a head's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from luthier.base.errors import MissingExtra, ModelError
from luthier.export.vocabulary import Vocabulary, vocabulary

FileType = Literal["f16", "q8_0"]

_ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
_LARGEST = 65504.0  # float16
_BLOCK = 32  # weights that share a scale in q8_0
_WORST = {"F32": 0.0, "F16": 1e-3, "Q8_0": 2e-2}
"""Relative error of a whole tensor that the rounding of its type stays below."""


@dataclass(frozen=True, slots=True)
class Speech:
    """How the model is talked to: the template, tokens that end an answer, and whether a text begins with BOS."""

    template: str
    stop_ids: frozenset[int]
    adds_bos: bool


def write_gguf(source: Path, file: Path, kind: FileType, tokenizer: PreTrainedTokenizerFast, speech: Speech) -> float:
    """Write the model in `source` as `file`; returns the largest relative error of a tensor, as read back.

    Raises:
        MissingExtra: the gguf package is not installed.
        ModelError: the shape or the tokenizer is none that llama.cpp would run the same, or a weight cannot be held.
        OSError: the disk is full.
    """
    library = _library()
    settings = AutoConfig.from_pretrained(source)
    _refuse_unknown(settings, source)
    tensors = _Tensors(source, settings, kind, library)
    writer = library.GGUFWriter(path=None, arch=library.MODEL_ARCH_NAMES[tensors.architecture])
    _describe(writer, settings, kind, library, source.name)
    _speak(writer, vocabulary(tokenizer, settings.vocab_size), tokenizer, speech)
    for place in tensors.places:
        shape, dtype = place.shape, np.dtype(np.float16 if place.kind == "F16" else np.float32)
        if place.kind == "Q8_0":
            shape, dtype = (*shape[:-1], shape[-1] // _BLOCK * (_BLOCK + 2)), np.dtype(np.uint8)
        size = int(np.prod(shape)) * dtype.itemsize
        raw = library.GGMLQuantizationType[place.kind]
        writer.add_tensor_info(place.name, shape, dtype, size, raw_dtype=raw)
    with closing(writer):
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for place, values in tensors.values():
            writer.write_tensor_data(_packed(place.kind, values, library))
    return _check(file, tensors, library)


@dataclass(frozen=True, slots=True)
class _Place:
    """One tensor of the file."""

    name: str
    stored: str | None
    """Its name in the model's files; None for a table made here."""
    shape: tuple[int, ...]
    kind: str


class _Tensors:
    """The tensors of a model as GGUF wants them, read one at a time."""

    def __init__(self, source: Path, settings: PreTrainedConfig, kind: FileType, library: Any):
        self.settings = settings
        self.architecture = library.MODEL_ARCH[_ARCHITECTURES[settings.model_type]]
        self._permuted = _ARCHITECTURES[settings.model_type] == "LLAMA"
        self._files: dict[str, Path] = {}
        self._factors = _rope_factors(settings)
        names = library.get_tensor_name_map(self.architecture, settings.num_hidden_layers)
        self.places: list[_Place] = []
        if self._factors is not None:
            self.places.append(_Place("rope_freqs.weight", None, tuple(self._factors.shape), "F32"))
        for path in sorted(source.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 (not a mapping)
                    shape = tuple(file.get_slice(stored).get_shape())
                    self._files[stored] = path
                    name = names.get_name(stored, try_suffixes=(".weight", ".bias"))
                    if name is None:
                        raise ModelError(f"llama.cpp has no place for {stored}", where=str(path), code="unknown_shape")
                    if stored == "lm_head.weight" and settings.tie_word_embeddings:
                        continue
                    self.places.append(_Place(name, stored, shape, _kind(shape, kind)))

    def values(self) -> Iterator[tuple[_Place, NDArray[np.float32]]]:
        """Every tensor in float32, in order."""
        for place in self.places:
            if place.stored is None:
                assert self._factors is not None
                yield place, self._factors.float().numpy()
                continue
            with safe_open(self._files[place.stored], framework="pt") as file:
                weight = file.get_tensor(place.stored).float()
            if self._permuted and ("q_proj" in place.stored or "k_proj" in place.stored):
                weight = _interleaved(weight, self._heads(place.stored))
            if not float(weight.abs().max()) <= (_LARGEST if place.kind == "F16" else float("inf")):
                raise ModelError(
                    f"{place.stored} has numbers that float16 cannot hold",
                    code="too_large",
                    fix="Use --gguf_type q8_0",
                )
            yield place, weight.numpy()

    def _heads(self, stored: str) -> int:
        settings = self.settings
        return int(settings.num_attention_heads if "q_proj" in stored else settings.num_key_value_heads)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows as llama.cpp rotates them: transformers turns (f, f + F) together, llama.cpp's Llama (2f, 2f + 1)."""
    rows = weight.shape[0]
    rows_H2F = weight.view(heads, 2, rows // heads // 2, *weight.shape[1:])
    return rows_H2F.transpose(1, 2).reshape(weight.shape)


def _kind(shape: tuple[int, ...], kind: FileType) -> str:
    if len(shape) == 1:
        return "F32"
    return "Q8_0" if kind == "q8_0" and shape[-1] % _BLOCK == 0 else "F16"


def _packed(kind: str, values: NDArray[np.float32], library: Any) -> NDArray[Any]:
    if kind == "Q8_0":
        return library.quants.quantize(values, library.GGMLQuantizationType.Q8_0)
    return values.astype(np.float16) if kind == "F16" else values


def _check(file: Path, tensors: _Tensors, library: Any) -> float:
    """Read the file back; returns the largest relative error.  Raises ModelError."""
    written: dict[str, Any] = {tensor.name: tensor for tensor in library.GGUFReader(file).tensors}
    worst = 0.0
    for place, values in tensors.values():
        tensor = written[place.name]
        back = library.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        norm = float(np.linalg.norm(values))
        error = float(np.linalg.norm(back.astype(np.float32) - values)) / max(norm, 1e-30)
        if not error <= _WORST[place.kind]:
            raise ModelError(f"{place.name} comes back {error:.1%} different", where=str(file), code="wrong_rounding")
        worst = max(worst, error)
    return worst


def _refuse_unknown(settings: PreTrainedConfig, source: Path) -> None:
    """What llama.cpp would run differently, or not at all."""
    rope = _rope(settings)
    obstacles = {
        f"it is of type {settings.model_type}": settings.model_type not in _ARCHITECTURES,
        "its weights are rounded already": getattr(settings, "quantization_config", None) is not None,
        f"its activation is {getattr(settings, 'hidden_act', None)}": getattr(settings, "hidden_act", None) != "silu",
        "its attention slides": _slides(settings),
        f"its positions are stretched by {rope.get('rope_type')}": rope.get("rope_type", "default")
        not in ("default", "linear", "llama3", "yarn"),
        "it rotates a part of each head": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    found = [what for what, there in obstacles.items() if there]
    if found:
        raise ModelError(
            f"this model cannot be a GGUF file: {found[0]}",
            where=str(source),
            code="unknown_shape",
            fix="Llama, Mistral, Qwen2 and Qwen3 shapes can; use the safetensors folder for others",
        )


def _slides(settings: PreTrainedConfig) -> bool:
    if settings.model_type == "mistral":
        return getattr(settings, "sliding_window", None) is not None
    return bool(getattr(settings, "use_sliding_window", False))


def _rope(settings: PreTrainedConfig) -> Mapping[str, Any]:
    return getattr(settings, "rope_parameters", None) or {}


def _head_width(settings: Any) -> int:
    return int(getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads)


def _rope_factors(settings: PreTrainedConfig) -> Tensor | None:
    """By how much Llama 3 slows each frequency down, [F]."""
    rope = _rope(settings)
    if rope.get("rope_type") != "llama3":
        return None
    slowed_F, _ = ROPE_INIT_FUNCTIONS["llama3"](settings, torch.device("cpu"))
    width = _head_width(settings)
    plain_F = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return plain_F / slowed_F


def _describe(writer: Any, settings: Any, kind: FileType, library: Any, name: str) -> None:
    """Sizes of the model, in the file's words."""
    rope = _rope(settings)
    writer.add_name(name)
    writer.add_type("model")
    writer.add_file_type(library.LlamaFileType["MOSTLY_F16" if kind == "f16" else "MOSTLY_Q8_0"])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_vocab_size(settings.vocab_size)
    writer.add_key_length(_head_width(settings))
    writer.add_value_length(_head_width(settings))
    writer.add_rope_dimension_count(_head_width(settings))
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type") in ("linear", "yarn"):
        kinds = {"linear": library.RopeScalingType.LINEAR, "yarn": library.RopeScalingType.YARN}
        writer.add_rope_scaling_type(kinds[rope["rope_type"]])
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def _speak(writer: Any, words: Vocabulary, tokenizer: PreTrainedTokenizerFast, speech: Speech) -> None:
    """Tokenizer, special tokens and chat template."""
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(list(words.tokens))
    writer.add_token_types(list(words.kinds))
    if words.scores is not None:
        writer.add_token_scores(list(words.scores))
    if words.merges:
        writer.add_token_merges(list(words.merges))
    if words.space_prefix is not None:
        writer.add_add_space_prefix(words.space_prefix)
    known: dict[str, Any] = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "unk": tokenizer.unk_token_id if words.model == "llama" else None,
        "eot": next((stop for stop in sorted(speech.stop_ids) if stop != tokenizer.eos_token_id), None),
    }
    for name, number in known.items():
        if isinstance(number, int):
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(speech.adds_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(speech.template)


def _library() -> Any:
    try:
        return import_module("gguf")
    except ImportError as error:
        raise MissingExtra("gguf", "export", what_for="--to_gguf") from error
