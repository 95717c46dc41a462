"""Invariants 2 and 3 over a base in few bits: artefacts answer as the live model, and a changed base is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rounded import BNB, LORAS, MAIN, WIDE, adapted, apart, load, logits, twin, ways

from luthier.base.errors import ConfigError
from luthier.model import lowbit, methods
from luthier.model.config import Lora, Quant
from luthier.run.resume import model_fingerprint

# PEFT itself uses a name that newer transformers deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@BNB
@pytest.mark.parametrize("quant", ways("nf4", "fp4", "int8"))
def test_the_artefact_answers_the_same_over_transformers_own_rounded_base(
    quant: Quant, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = tiny_model_dir("qwen2-untied", **WIDE)
    model = adapted(load(folder, quant), Lora(rank=4))
    methods.save(model, tmp_path)
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant.format, bnb_4bit_use_double_quant=quant.double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    if quant.bits == 8:  # whose products also round activations
        bits = BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=bits, dtype=torch.float32)
    for module in base.modules():  # the kernels for CPUs round to bfloat16
        module.support_avx512bf16_for_cpu = False
    plain = logits(PeftModel.from_pretrained(base, str(tmp_path)))
    assert apart(logits(model.network), plain) < (1e-5 if quant.bits == 4 else 0.03)
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path))
    assert 1e-3 < apart(logits(model.network), logits(whole)) < 0.5


@pytest.mark.parametrize("quant", ways(*MAIN))
@pytest.mark.parametrize("name", LORAS)
def test_a_merged_model_is_plain_and_answers_as_the_live_one(
    name: str, quant: Quant, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = adapted(load(tiny_model_dir("qwen2-untied", **WIDE), quant), LORAS[name])
    live = logits(model.network)
    note = methods.merge(model, tmp_path)
    assert note and "few bits" in note
    assert not lowbit.holds(model.base)
    assert apart(logits(model.base), live) < 1e-5
    assert apart(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), live) < 1e-5


@pytest.mark.parametrize("quant", ways(*MAIN))
def test_earlier_adapters_are_stacked_and_not_rounded_away(
    quant: Quant, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_model_dir("qwen2-untied", **WIDE)
    makers = {"dora": Lora(rank=3, alpha=3, dora=True), "one": Lora(rank=2, target=("q_proj",)), "two": Lora(rank=4)}
    for name, method in makers.items():
        methods.save(adapted(load(folder, quant), method), tmp_path / name)
    named = tuple(str(tmp_path / name) for name in makers)
    plain = twin(folder, quant)
    methods.attach(plain, named)
    expected = logits(plain.network)

    used = load(folder, quant, trained=False)
    methods.attach(used, named)
    assert not used.trained() and not used.network.training
    assert apart(logits(used.network), expected) < 1e-5

    model = adapted(load(folder, quant), makers["two"], named)
    assert apart(logits(model.network), expected) < 1e-5
    assert not any("earlier" in name for name in model.trained()) and len(model.trained()) == 28
    methods.save(model, tmp_path / "again")
    assert (tmp_path / "again/adapter_model.safetensors").read_bytes() == (
        tmp_path / "two/adapter_model.safetensors"
    ).read_bytes()
    methods.merge(model, tmp_path / "merged")
    assert apart(logits(model.base), expected) < 1e-5
    with pytest.raises(ConfigError, match="stacked"):
        adapted(load(folder, quant), makers["dora"], (named[1], named[0]))


@pytest.mark.parametrize("quant", ways(*MAIN))
def test_the_fingerprint_sees_scales(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir("qwen2", **WIDE)
    one, same, other = (load(folder, quant) for _ in range(3))
    assert model_fingerprint(one) == model_fingerprint(same)
    next(tensor for name, tensor in lowbit.tensors(other.base) if "absmax" in name or "scale" in name).mul_(2)
    assert model_fingerprint(one) != model_fingerprint(other)
