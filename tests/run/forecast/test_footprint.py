"""The memory of a step, counted without weights or device, against what was measured on GPUs and is counted here.

Measured peaks are those of docs/performance.md (one H200, torch 2.11); predictions must not drift away from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from luthier.base.console import Console
from luthier.base.rundir import RunDir
from luthier.data.batch import Batch
from luthier.data.render import Renderer
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh
from luthier.model import methods, shadow
from luthier.model.causal import Model
from luthier.model.config import Full, Lora, Method, ModelConfig, Quant
from luthier.model.layer import Keep
from luthier.model.load import load_model, load_tokenizer
from luthier.model.method import Boft, Oft, Prefix, Prompt, PTuning
from luthier.objectives.config import Distill, Pretrain
from luthier.objectives.distil import Distillation
from luthier.objectives.language import Language
from luthier.objectives.setting import Part
from luthier.objectives.teacher import Live, Unasked
from luthier.run import statesize
from luthier.run.config import RunConfig
from luthier.run.forecast.footprint import count_evaluation, count_step
from luthier.run.forecast.hardware import Device
from luthier.run.forecast.ledger import Ledger
from luthier.run.forecast.sketch import sketch_teachers, without_numbers
from luthier.run.parts import Run
from luthier.run.recompute import random_trial

GIB = 2**30
SEVEN: dict[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
HALF: dict[str, Any] = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {"7b": SEVEN, "0.5b": HALF}
LORA, FULL = Lora(rank=16, alpha=32), Full()
OBJECTIVE = Language(Pretrain(), Renderer.__new__(Renderer))
CPU = Device("cpu", 8.0, gpu=False, kernels=False, bfloat16=False, free_gib=8.0)


_MODELS: dict[str, Model] = {}


def model_of(folder: Path, shape: str, method: Method, quant: Quant) -> Model:
    """Made once."""
    key = f"{folder} {shape} {method} {quant}"
    if key not in _MODELS:
        _MODELS[key] = _made(folder, shape, method, quant)
    return _MODELS[key]


def _made(folder: Path, shape: str, method: Method, quant: Quant) -> Model:
    settings = Qwen2Config(**SHAPES[shape], max_position_embeddings=32768, architectures=["Qwen2ForCausalLM"])
    settings.save_pretrained(folder / shape)
    tokenizer = load_tokenizer(ModelConfig(path="nano"))
    model = shadow.shadow(ModelConfig(path=str(folder / shape), quant=quant), torch.bfloat16, tokenizer=tokenizer)
    with shadow.META:
        methods.apply(model, method)
    assert model.by_hand(shadow.Sizes()) is None
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


# work, keep, tokens of a micro-batch, tokens of a sequence, optimizer, several micro-batches a step, GiB measured
MEASURED: list[tuple[str, Method, Quant, Keep, int, int, str, bool, float]] = [
    ("7b", LORA, Quant(), "all", 16384, 4096, "adamw", False, 68.8),
    ("7b", LORA, Quant(), "input", 4096, 4096, "adamw", True, 16.9),
    ("7b", LORA, Quant(method="fp8"), "all", 16384, 4096, "adamw", False, 62.7),
    ("7b", LORA, Quant(method="fp8"), "input", 8192, 4096, "adamw", True, 12.4),
    ("7b", LORA, Quant(), "input", 8192, 4096, "adamw", True, 18.90),
    ("7b", LORA, Quant(bits=4), "input", 8192, 4096, "adamw", True, 9.52),
    ("7b", LORA, Quant(method="hqq", bits=3), "input", 8192, 4096, "adamw", True, 9.18),
    ("0.5b", FULL, Quant(), "all", 32768, 2048, "adamw", False, 46.1),
    ("0.5b", FULL, Quant(), "input", 16384, 2048, "adamw_8bit", True, 5.99),
]


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{case[0]}-{case[2].method}{case[2].bits}-{case[3]}")
def test_what_was_measured_on_a_gpu_is_foretold_within_three_percent(folder: Path, case: Any) -> None:
    shape, method, quant, keep, tokens, longest, name, accumulates, measured = case
    model = model_of(folder, shape, method, quant)
    step = count_step(model, OBJECTIVE, random_trial(tokens, longest, model.vocabulary), keep, accumulates=accumulates)
    state = statesize.state_bytes(model.trained(), OptimConfig.model_validate({"name": name}), tied=model.tied)
    assert (step.total + state) / GIB == pytest.approx(measured, rel=0.03)


def test_keeping_less_takes_less_and_tokens_add_up(folder: Path) -> None:
    model = model_of(folder, "0.5b", FULL, Quant())

    def total(keep: Keep, tokens: int) -> int:
        return count_step(model, OBJECTIVE, random_trial(tokens, 2048, 1000), keep, accumulates=True).total

    keeps: tuple[Keep, ...] = ("all", "most", "some", "input")
    totals = [total(keep, 8192) for keep in keeps]
    assert totals == sorted(totals, reverse=True) and totals[0] > 2 * totals[-1]
    # Two small steps tell a large one: what `run.recompute` believes on a GPU.
    small, large, larger = (total("all", tokens) for tokens in (8192, 16384, 32768))
    assert larger == pytest.approx(large + 2 * (large - small), rel=1e-3)
    assert count_evaluation(model, OBJECTIVE, random_trial(8192, 2048, 1000)) < totals[-1]


@pytest.mark.parametrize("quant", [Quant(), Quant(bits=4), Quant(bits=8), Quant(method="hqq", bits=3)])
@pytest.mark.parametrize("method", [Lora(rank=8, alpha=16, dora=True), Full(), Lora(rank=4, alpha=8)])
def test_weights_have_the_sizes_of_real_ones(method: Method, quant: Quant) -> None:
    if quant.on and isinstance(method, Full):
        pytest.skip("what is rounded does not move")
    if quant.on:
        pytest.importorskip("bitsandbytes" if quant.method == "bnb" else "hqq")
    config = ModelConfig(path="nano", quant=quant)
    tokenizer = load_tokenizer(config)
    real = load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=True)
    blank = shadow.shadow(config, torch.float32, tokenizer=tokenizer)
    for model in (real, blank):
        methods.apply(model, method)

    def sizes(model: Model) -> dict[str, tuple[int, torch.dtype, bool]]:
        named = {**dict(model.network.named_parameters()), **dict(model.network.named_buffers())}
        return {name: (value.numel(), value.dtype, value.requires_grad) for name, value in named.items()}

    def bytes_of(model: Model) -> dict[str, int]:
        return {name: value.nbytes for name, value in model.network.named_buffers()}

    assert bytes_of(blank) == bytes_of(real)
    if quant.method != "hqq":  # which holds its bits in other shapes and types, of as many bytes
        assert sizes(blank) == sizes(real)
    assert blank.trained().keys() == real.trained().keys()


STEPS: list[tuple[Method, Keep]] = [
    (LORA, "most"),
    (LORA, "input"),
    (FULL, "most"),
    (Oft(), "most"),
    (Boft(), "most"),
    (Prompt(), "most"),
    (Prompt(text="Answer in one sentence."), "input"),
    (Prefix(), "most"),
    (Prefix(projection=True, hidden_size=64), "most"),
    (PTuning(), "most"),
    (PTuning(encoder="lstm", hidden_size=64), "input"),
]


class Asked(Unasked):
    """Rows with numbers in them."""

    def known(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros_like(rows) for rows in super().known(batch))


@pytest.mark.parametrize("kind", ["forward", "jsd"])
@pytest.mark.parametrize("top_k", [None, 20])
def test_a_step_beside_a_teacher_holds_what_was_foretold(kind: Any, top_k: int | None) -> None:
    config = ModelConfig(path="nano")
    tokenizer = load_tokenizer(config)
    settings = Distill(teacher="nano", divergence=kind, top_k=top_k)
    batch = random_trial(500, 256, 6000)
    real = load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=True)
    methods.apply(real, FULL)
    real.train_mode("most")
    objective = Distillation(settings, OBJECTIVE, Live(config) if top_k is None else Asked(top_k))
    objective.prepare(real, [batch])
    with Ledger() as ledger:
        for one in (real, *objective.beside):
            ledger.enter(one.network.parameters(), "weights")
            ledger.enter(one.network.buffers(), "weights")
        ledger.begin()
        real.open_gradient()
        torch.stack(list(objective.sums(real, batch).losses.values())).sum().backward()
    run = Run(
        RunConfig(model=config, method=FULL, objective=settings), Console(quiet=True), Mesh("cpu"), RunDir(Path()), 512
    )
    student = Distillation(settings, OBJECTIVE, Live(config))
    part = Part("", student, run.config.data)
    blank, _ = without_numbers(run, tokenizer, torch.float32, CPU, [part])
    notes = sketch_teachers([part], torch.float32, tokenizer)
    assert bool(notes) == (top_k is not None) and len(student.beside) == (top_k is None)
    step = count_step(blank, student, batch, "most", accumulates=False, gpu=False)
    assert step.whole and step.peak.weights == ledger.peak.weights
    assert step.peak.total == pytest.approx(ledger.peak.total, rel=0.02)


@pytest.mark.parametrize(("method", "keep"), STEPS, ids=lambda value: getattr(value, "type", value))
def test_a_step_on_this_machine_holds_what_was_foretold(method: Method, keep: Keep) -> None:
    """The same count over real tensors: what a model without numbers leaves out would show."""
    config = ModelConfig(path="nano")
    tokenizer = load_tokenizer(config)
    batch = random_trial(500, 256, 6000)  # unequal: of equal ones transformers needs no mask, which only numbers tell
    real = load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=True)
    methods.apply(real, method)
    real.train_mode(keep)
    with Ledger() as ledger:
        ledger.enter(real.network.parameters(), "weights")
        ledger.enter(real.network.buffers(), "weights")
        ledger.begin()
        real.open_gradient()
        torch.stack(list(OBJECTIVE.sums(real, batch).losses.values())).sum().backward()
    run = Run(RunConfig(model=config, method=method), Console(quiet=True), Mesh(CPU.kind), RunDir(Path()), 512)
    blank, _ = without_numbers(run, tokenizer, torch.float32, CPU, [Part("", OBJECTIVE, run.config.data)])
    step = count_step(blank, OBJECTIVE, batch, keep, accumulates=False, gpu=False)
    assert step.peak.weights == ledger.peak.weights
    assert step.peak.total == pytest.approx(ledger.peak.total, rel=0.02)
    assert all(weight.device.type == "meta" and weight.grad is None for weight in blank.trained().values())


def test_every_tensor_counts_once_and_as_long_as_it_lives() -> None:
    with Ledger() as ledger:
        held = torch.zeros(1000)
        view = held[10:20].view(2, 5)
        assert ledger.now.total == 4096
        other = held + 1
        assert (ledger.now.total, ledger.peak.total) == (8192, 8192)
        del other
        assert (ledger.now.total, ledger.peak.total) == (4096, 8192)
        ledger.enter([view], "gradients")
        ledger.begin()
        assert (ledger.now.gradients, ledger.now.others, ledger.peak.total) == (4096, 0, 4096)
