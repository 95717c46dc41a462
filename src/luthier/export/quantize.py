"""Weights rounded and stored: each method writes a folder that opens as any model does.

bnb            NF4 or int8, by bitsandbytes; opens in transformers, here, in vLLM
torchao        int8 (int4 on GPUs), by torchao; opens in transformers, here, in vLLM
hqq            2, 3, 4 or 8 bits, by hqq; opens here only: transformers does not know the format today
gptq           GPTQ by GPTQModel, calibrated; opens in transformers, here, in vLLM
llmcompressor  GPTQ in 4 bits, int8 weights, by llm-compressor; opens in transformers, here, in vLLM
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from luthier.base.errors import MissingExtra, ModelError
from luthier.export.config import QuantMethod
from luthier.model import roundedfile, rounding
from luthier.model.config import Quant
from luthier.model.folder import first_line
from luthier.model.load import quiet


@dataclass(frozen=True, slots=True)
class Rounded:
    """What is asked for."""

    method: QuantMethod
    bits: int
    group: int
    device: torch.device
    samples: Sequence[Sequence[int]]
    """Token ids of texts, for methods that look at activations."""


def quantize(source: Path, out: Path, asked: Rounded) -> None:
    """Write the rounded weights and config.json of the model in `source` into the folder `out`.

    Raises:
        MissingExtra: the library is not installed.
        ModelError: it cannot do this here; the message names what it lacks.
        OSError: the disk is full.
    """
    known: dict[str, Callable[[Path, Path, Rounded], None]] = {
        "bnb": _bitsandbytes,
        "torchao": _torchao,
        "hqq": _hqq,
        "gptq": _gptqmodel,
        "llmcompressor": _llmcompressor,
    }
    known[asked.method](source, out, asked)


def _bitsandbytes(source: Path, out: Path, asked: Rounded) -> None:
    rounding.rounding(Quant(method="bnb", bits=asked.bits), asked.device)  # whether it is here, and is right
    if asked.bits == 8:
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    _by_transformers(source, out, asked, settings)


def _torchao(source: Path, out: Path, asked: Rounded) -> None:
    library = _library("torchao.quantization", "torchao", "export")
    if asked.bits == 8:
        settings = library.Int8WeightOnlyConfig(version=2)
    elif asked.device.type != "cuda":
        raise ModelError(
            "torchao's 4 bits need an NVIDIA GPU",
            where="--quant_method torchao",
            code="no_kernel",
            fix="Use --quant_bits 8, or --quant_method bnb or hqq",
        )
    else:
        settings = library.Int4WeightOnlyConfig(group_size=asked.group)
    _by_transformers(source, out, asked, TorchAoConfig(settings))


def _by_transformers(source: Path, out: Path, asked: Rounded, settings: Any) -> None:
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    try:
        with quiet():
            network = load(source, quantization_config=settings, dtype="auto", device_map=str(asked.device))
            network.save_pretrained(out)
    except (ImportError, RuntimeError, ValueError) as error:  # each library has its own words for what it cannot do
        raise _cannot(asked, error) from error


def _hqq(source: Path, out: Path, asked: Rounded) -> None:
    how = Quant(method="hqq", bits=asked.bits, group_size=asked.group)
    with quiet():
        roundedfile.write(source, out, how, asked.device)


def _gptqmodel(source: Path, out: Path, asked: Rounded) -> None:
    if asked.device.type == "cpu":
        # It wants more workers than half of two cores, and would compile a packer for minutes that Python is too.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
        os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    library = _library("gptqmodel", "gptqmodel", "gptq", "gptq")
    _library("optimum", "optimum", "gptq", "gptq")  # without it transformers does not open the result
    settings = library.QuantizeConfig(bits=asked.bits, group_size=asked.group)
    try:
        model = library.GPTQModel.load(str(source), settings, device=str(asked.device))
        model.quantize([{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in asked.samples])
        model.save(str(out))
    except (ImportError, RuntimeError, ValueError) as error:
        raise _cannot(asked, error) from error


def _llmcompressor(source: Path, out: Path, asked: Rounded) -> None:
    library = _library("llmcompressor", "llmcompressor", "compress")
    modifiers = _library("llmcompressor.modifiers.quantization", "llmcompressor", "compress")
    schemes = _library("compressed_tensors.quantization", "llmcompressor", "compress")
    from datasets import Dataset

    # The library's own schemes have groups of 128, which divide few small models.
    weights = schemes.QuantizationArgs(
        num_bits=asked.bits,
        strategy="group" if asked.bits == 4 else "channel",
        group_size=asked.group if asked.bits == 4 else None,
    )
    groups = {"all": schemes.QuantizationScheme(targets=["Linear"], weights=weights)}
    kind = modifiers.GPTQModifier if asked.bits == 4 else modifiers.QuantizationModifier
    recipe = kind(config_groups=groups, ignore=["lm_head"])
    rows = Dataset.from_dict({"input_ids": [list(ids) for ids in asked.samples]})
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    try:
        with quiet():
            network = load(source, dtype="auto", device_map=str(asked.device))
        library.oneshot(
            model=network,
            recipe=recipe,
            dataset=rows,
            num_calibration_samples=len(rows),
            max_seq_length=max(map(len, asked.samples)),
            output_dir=str(out),
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise _cannot(asked, error) from error


def _library(module: str, package: str, extra: str, method: str | None = None) -> Any:
    """A library that `--quant_method` needs; the method is called like its package unless it is named."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(package, extra, what_for=f"--quant_method {method or package}") from error


def _cannot(asked: Rounded, error: Exception) -> ModelError:
    return ModelError(
        f"{asked.bits} bits are not possible here ({first_line(error)})",
        where=f"--quant_method {asked.method}",
        code="cannot_round",
        fix="Use another --quant_method: bnb and hqq work on any device",
    )
