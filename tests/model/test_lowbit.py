"""A base in few bits: gradients of adapters over it are those over its rounded numbers, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rounded import BNB, LORAS, MAIN, WAYS, WIDE, adapted, apart, batch, gradients, load, logits, twin, ways
from torch import Tensor, nn

from luthier.base.errors import ConfigError, ModelError
from luthier.model import lowbit, methods, rounding
from luthier.model.config import Freeze, Full, Lora, Method, Quant


@pytest.mark.parametrize("quant", ways())
def test_gradients_are_those_of_plain_lora_over_the_rounded_weights(
    quant: Quant, tiny_model_dir: Callable[..., Path]
) -> None:
    folder = tiny_model_dir("qwen2-untied", **WIDE)
    for name, method in LORAS.items() if quant in [WAYS[name] for name in MAIN] else [("lora", LORAS["lora"])]:
        model, plain = adapted(load(folder, quant), method), adapted(twin(folder, quant), method)
        assert lowbit.holds(model.network) and not lowbit.holds(plain.network)
        found, expected = gradients(model), gradients(plain)
        assert found.keys() == expected.keys() == model.trained().keys(), name
        for weight in expected:
            torch.testing.assert_close(found[weight], expected[weight], rtol=1e-5, atol=1e-6)
        assert apart(logits(model.network), logits(plain.network)) < 1e-6


@pytest.mark.parametrize("quant", ways())
def test_the_rounded_weights_are_near_the_weights(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir("qwen2-untied", **WIDE)
    exact, rounded = load(folder, Quant()), load(folder, quant)
    worst = {8: 0.02, 4: 0.13, 3: 0.2, 2: 0.4}[quant.bits or 4]
    for name, layer in rounded.base.named_modules():
        if isinstance(layer, lowbit.LowBitLinear):
            weight: Any = exact.base.get_submodule(name).weight
            assert 1e-4 < apart(layer.weight, weight) < worst
    assert lowbit.count_weights(rounded.base) == lowbit.count_weights(exact.base)
    bits = 8 * sum(tensor.nbytes for _, tensor in lowbit.tensors(rounded.base)) / (sum(_rounded_sizes(rounded.base)))
    group = quant.group_size if quant.method == "hqq" else 64
    assert bits < (quant.bits or 4) + 64 / group + 8  # tiny layers: grids and second scales weigh


def _rounded_sizes(network: nn.Module) -> Iterator[int]:
    return (m.in_features * m.out_features for m in network.modules() if isinstance(m, lowbit.LowBitLinear))


@pytest.mark.parametrize("quant", ways(*MAIN))
def test_training_moves_the_adapters_only_and_the_loss_falls(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    model = adapted(load(tiny_model_dir("qwen2", **WIDE), quant, "bfloat16"), Lora(rank=8))
    before = {name: tensor.clone() for name, tensor in lowbit.tensors(model.network)}
    optimizer = torch.optim.AdamW(model.trained().values(), lr=1e-2)
    losses: list[float] = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = -model.logprobs(batch())[0].sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    after = dict(lowbit.tensors(model.network))
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("quant", ways(*MAIN))
def test_what_is_not_rounded_has_the_arithmetics_type(quant: Quant, tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir("qwen2-untied", **WIDE)
    for trained in (True, False):
        model = load(folder, quant, "bfloat16", trained=trained)
        if trained:
            methods.apply(model, Lora(rank=2, modules_to_save=("lm_head",)))
        kinds = {weight.dtype for weight in model.network.parameters() if not weight.requires_grad}
        assert kinds == {torch.bfloat16}
        assert {weight.dtype for weight in model.trained().values()} <= {torch.float32}
        assert type(model.base.lm_head) is not lowbit.LowBitLinear
        rounded = {n.rpartition(".")[2] for n, m in model.base.named_modules() if isinstance(m, lowbit.LowBitLinear)}
        assert rounded == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} or trained
        held = [m for m in model.network.modules() if isinstance(m, lowbit.LowBitLinear)]
        assert len(held) == 14 and {m.weight.dtype for m in held} == {torch.bfloat16}


@BNB
def test_gradient_checkpointing_keeps_the_gradients(tiny_model_dir: Callable[..., Path]) -> None:
    model = adapted(load(tiny_model_dir("qwen2", **WIDE), WAYS["nf4"]), Lora(rank=4))
    plain = gradients(model)
    model.train_mode("input")
    again = gradients(model)
    names = "is_activation_checkpointing", "is_gradient_checkpointing"  # since transformers 5.24, and before
    recomputed = any(getattr(model.base, name, False) for name in names)
    assert recomputed or "Step" in type(model.hidden(batch()).grad_fn).__name__
    assert all(torch.equal(again[name], plain[name]) for name in plain)


@BNB
def test_conv1d_layers_are_turned_round(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = adapted(load(tiny_model_dir("gpt2"), WAYS["nf4"]), Lora(rank=2))
    plain = adapted(twin(tiny_model_dir("gpt2"), WAYS["nf4"]), Lora(rank=2))
    assert apart(logits(model.network), logits(plain.network)) < 1e-6
    exact: Any = load(tiny_model_dir("gpt2"), Quant()).base
    layer: Any = model.base.transformer.h[1].mlp.c_fc.base_layer
    assert apart(layer.weight, exact.transformer.h[1].mlp.c_fc.weight.t()) < 0.13


def test_layers_that_do_not_fit_stay_as_they_are(tiny_model_dir: Callable[..., Path]) -> None:
    pytest.importorskip("hqq")
    model = load(tiny_model_dir("qwen2", **WIDE), Quant(method="hqq", group_size=2048))
    held = [m for m in model.base.modules() if isinstance(m, lowbit.LowBitLinear)]
    assert len(held) == 10, "all but keys and values, which are a single group"
    assert model.note and "4 layers are not rounded, hqq packs 2 groups together" in model.note
    with pytest.raises(ModelError, match="nothing in this model can be held in 4 bits: its size is no multiple"):
        load(tiny_model_dir("qwen2", **WIDE), Quant(method="hqq", group_size=65536))


@BNB
def test_layers_are_left_out_by_name(tiny_model_dir: Callable[..., Path]) -> None:
    quant = Quant(bits=4, skip=("layers.0", "k_proj"))
    model = load(tiny_model_dir("qwen2", **WIDE), quant)
    held = {name for name, module in model.base.named_modules() if isinstance(module, lowbit.LowBitLinear)}
    assert len(held) == 6 and all("layers.1." in name and "k_proj" not in name for name in held)


@pytest.mark.parametrize("method", [Full(), Freeze(last_layers=1)])
@BNB
def test_weights_in_few_bits_cannot_move(method: Method, tiny_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="cannot move"):
        methods.apply(load(tiny_model_dir("qwen2", **WIDE), WAYS["nf4"]), method)


class Fake:
    """A library that can be made to fail."""

    def __init__(self, error: float = 0.0, product: Callable[[Tensor], Tensor] | Exception | None = None):
        self.error, self.answer = error, product

    def obstacle(self, rows: int, columns: int) -> str | None:
        return None

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        return {"all": weight_OI + self.error * weight_OI.abs().mean() * torch.randn_like(weight_OI)}

    def dense(self, held: Any, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return held["all"].to(dtype)

    def product(self, held: Any, rows: int, x: Tensor, bias_O: Tensor | None) -> Tensor | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return None if self.answer is None else self.answer(nn.functional.linear(x, held["all"].to(x.dtype), bias_O))


@pytest.mark.parametrize(
    ("product", "fused"),
    [
        (lambda y: y * (1 + 1e-6), True),
        (lambda y: y * 1.01, False),
        (lambda y: y if y.shape[0] > 1 else y * 0, False),
        (lambda y: y * float("nan"), False),
        (RuntimeError("no kernel image is available for execution on the device"), False),
    ],
)
def test_a_kernel_that_is_wrong_is_not_used(
    product: Any, fused: bool, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "rounding", lambda *_: Fake(product=product))
    folder = tiny_model_dir("qwen2", **WIDE)
    model = load(folder, WAYS["nf4"])
    assert {m.fused for m in model.base.modules() if isinstance(m, lowbit.LowBitLinear)} == {fused}
    assert apart(logits(model.base), logits(load(folder, Quant()).base)) < 1e-4


def test_rounding_that_is_wrong_is_refused(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (2.0, float("nan")):
        monkeypatch.setattr(rounding, "rounding", lambda *_, error=error: Fake(error))
        with pytest.raises(ModelError) as caught:
            load(tiny_model_dir("qwen2", **WIDE), WAYS["nf4"])
        assert caught.value.code == "wrong_rounding" and "layers.0" in str(caught.value)

    def failing(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available\nmore")

    fake = Fake()
    monkeypatch.setattr(fake, "pack", failing)
    monkeypatch.setattr(rounding, "rounding", lambda *_: fake)
    with pytest.raises(ModelError, match=r"cannot be rounded on this cpu .no kernel image is available") as caught:
        load(tiny_model_dir("qwen2", **WIDE), WAYS["nf4"])
    assert caught.value.code == "no_kernel"


def test_weights_stored_rounded_are_used_as_they_are_and_not_trained(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    import json
    import shutil

    folder = tmp_path / "gptq"
    shutil.copytree(tiny_model_dir("qwen2", **WIDE), folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"stored rounded already \(gptq\)") as caught:
        load(folder, Quant())
    assert caught.value.code == "stored_rounded"


@BNB
@pytest.mark.parametrize(("bits", "dtype"), [(4, "float32"), (4, "bfloat16"), (8, "float32")])
def test_weights_that_bitsandbytes_rounded_before_are_taken_over(
    bits: int, dtype: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    folder, quant = tiny_model_dir("qwen2-untied", **WIDE), Quant(bits=bits, double_quant=False)
    stored = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=stored).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    model = load(tmp_path, Quant(), dtype)
    assert model.note and "stored in (bitsandbytes)" in model.note
    ours, own = dict(lowbit.tensors(model.base)), dict(lowbit.tensors(load(folder, quant, dtype).base))
    assert ours.keys() == own.keys()
    assert all(torch.equal(ours[name], own[name]) for name in own if "codes" in name) or dtype == "bfloat16"
    found = gradients(adapted(model, Lora(rank=4)))
    expected = gradients(adapted(twin(folder, quant), Lora(rank=4)))
    assert all(apart(found[name], expected[name]) < (1e-5 if dtype == "float32" else 0.2) for name in expected)
    with pytest.raises(ModelError, match=r"stored rounded already.*Leave --quant_method"):
        load(tmp_path, quant)
    with pytest.raises(ConfigError, match="cannot move"):
        methods.apply(load(tmp_path, Quant()), Full())
