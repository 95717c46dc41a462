"""R18: a training that cannot fit is refused before a weight is read, with the estimate and what to change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from luthier.base.console import Console
from luthier.base.errors import DoesNotFit
from luthier.model.nano import nano_folder
from luthier.run.config import RunConfig
from luthier.run.forecast import refusal
from luthier.run.forecast.hardware import Device
from luthier.run.train import train

SEVEN = Qwen2Config(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064, tie_word_embeddings=False, architectures=["Qwen2ForCausalLM"],
)  # fmt: skip
WEIGHTS = 7_615_616_512
"""Numbers of that shape."""


class Loaded(Exception):
    """The weights were asked for."""


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """A model of 7B, whose weights are a file of the right size with nothing in it."""
    folder = tmp_path / "seven"
    shutil.copytree(nano_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    SEVEN.save_pretrained(folder)
    header = json.dumps({"x": {"dtype": "BF16", "shape": [WEIGHTS], "data_offsets": [0, 2 * WEIGHTS]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * WEIGHTS)  # no disk is taken
    return folder


def start(folder: Path, model: dict[str, Any], gib: float, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Train where a CPU has so much memory free, up to where weights would be loaded."""
    rows = folder / "chats.jsonl"
    rows.write_text(json.dumps({"query": "What is 1 and 1?", "response": "It is 2."}))
    tree: dict[str, Any] = {
        "model": model,
        "data": {"datasets": [str(rows)], "max_length": 64},
        "train": {"max_steps": 1, **more.pop("train", {})},
        "log": {"report_to": ["none"]},
        "output_dir": str(folder / "runs"),
        "device": "cpu",
        **more,
    }
    here = Device("cpu", gib, gpu=False, kernels=False, bfloat16=False, free_gib=gib)
    monkeypatch.setattr(refusal, "device_named", lambda *_: here)

    def load(*_: Any, **__: Any) -> None:
        raise Loaded

    monkeypatch.setattr("luthier.run.train.build_model", load)
    train(RunConfig.model_validate(tree), Console(quiet=True))


def test_what_cannot_fit_is_refused_with_the_estimate_and_what_to_change(
    seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DoesNotFit) as caught:
        start(tmp_path, {"path": str(seven)}, 80, monkeypatch, method={"type": "full"})
    told = str(caught.value)
    quarter = WEIGHTS * 4 / 2**30
    assert f"{4 * quarter:.1f} GiB whatever its steps are like" in told and "80.0 GiB free" in told
    assert f"{quarter:.1f} of weights" in told and f"{2 * quarter:.1f} of optimizer state" in told
    assert "--train_type lora" in told and caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("gib", "more"),
    [
        (32, {"method": {"type": "lora", "rank": 8}}),
        (90, {"method": {"type": "full"}, "optim": {"name": "sgd"}}),
        (16, {"method": {"type": "lora", "rank": 8}, "model": {"quant": {"method": "fp8"}}}),
        (48, {"method": {"type": "lisa"}}),
        (32, {"method": {"type": "gradual"}}),
    ],
    ids=["adapters", "less state", "few bits", "a few layers at a time", "not all at once"],
)
def test_what_may_fit_is_tried(
    seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, more: dict[str, Any]
) -> None:
    with pytest.raises(Loaded):
        start(tmp_path, {"path": str(seven), **more.get("model", {})}, gib, monkeypatch, **without_model(more))


def without_model(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "model"}


def test_layers_at_rest_have_no_gradient_and_no_state(
    seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DoesNotFit) as caught:
        start(tmp_path, {"path": str(seven)}, 32, monkeypatch, method={"type": "lisa", "active_layers": 2})
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3584 + 2 * 512 + 3 * 3584 * 18944 + 2 * 3584
    moving = (2 * 152064 * 3584 + 3584 + 2 * layer) * 4 / 2**30
    told = str(caught.value)
    assert f"{moving:.1f} of gradients" in told and f"{2 * moving:.1f} of optimizer state" in told


def test_a_teacher_is_held_beside_its_student(seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = {"objective": {"type": "distill", "teacher": str(seven)}, "method": {"type": "lora", "rank": 8}}
    with pytest.raises(DoesNotFit, match=f"{WEIGHTS * 4 / 2**30:.1f} of weights"):
        start(tmp_path, {"path": "nano"}, 24, monkeypatch, **taught)
    with pytest.raises(Loaded):
        start(tmp_path, {"path": "nano"}, 32, monkeypatch, **taught)


def test_small_models_are_not_even_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "without_numbers", lambda *_: pytest.fail("it was counted"))
    with pytest.raises(Loaded):
        start(tmp_path, {"path": "nano"}, 1, monkeypatch, method={"type": "full"})


def test_averages_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = 7_676_160 * 16 / 2**30
    method: dict[str, Any] = {"method": {"type": "full"}}
    with pytest.raises(Loaded):
        start(tmp_path, {"path": "nano"}, held * 1.05, monkeypatch, **method)
    with pytest.raises(DoesNotFit, match="of averages"):
        start(tmp_path, {"path": "nano"}, held * 1.05, monkeypatch, **method, train={"ema_decay": 0.9})
