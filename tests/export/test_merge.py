"""Adapters merged tensor by tensor give the weights that merging the live model gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_artefacts import LORAS, TOLERANCE, difference, live_logits, opened, plain_logits, plain_model, trained

from luthier.export.merge import Unstreamable, merge_files
from luthier.model import methods
from luthier.model.config import Full, Lora

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("name", LORAS)
def test_merged_answers_as_the_live_adapter(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2-untied", initializer_range=0.1)
    model = trained(opened(base, LORAS[name]))
    live = live_logits(model)
    methods.save(model, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    done = merge_files(base, [tmp_path / "adapter"], tmp_path / "merged", None)
    assert done.changed and done.rounding == 0.0
    assert difference(live, plain_logits(plain_model(tmp_path / "merged"))) < TOLERANCE
    methods.merge(model, tmp_path / "whole")
    streamed = load_file(tmp_path / "merged/model.safetensors")
    whole = load_file(tmp_path / "whole/model.safetensors")
    assert streamed.keys() == whole.keys()
    assert all(torch.allclose(streamed[key], whole[key], atol=1e-6) for key in whole)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
@pytest.mark.parametrize("shape", ["qwen3", "llama", "gemma2", "gpt2", "phi3"])
def test_other_shapes(shape: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir(shape, initializer_range=0.1)
    model = trained(opened(base, Lora(rank=2)))
    live = live_logits(model)
    methods.save(model, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merge_files(base, [tmp_path / "adapter"], tmp_path / "merged", None)
    assert difference(live, plain_logits(plain_model(tmp_path / "merged"))) < TOLERANCE


def test_two_adapters_in_order_and_shards_as_they_were(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny_model_dir("qwen2-untied", initializer_range=0.1)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(base, max_shard_size="40KB")
    AutoTokenizer.from_pretrained(source).save_pretrained(base)
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 2
    first = trained(opened(base, Lora(rank=2)))
    methods.save(first, tmp_path / "one")
    # The second adapter learns over the first one merged.
    methods.merge(first, tmp_path / "between")
    second = trained(opened(tmp_path / "between", Lora(rank=2, dora=True)))
    live = live_logits(second)
    methods.save(second, tmp_path / "two")
    (tmp_path / "merged").mkdir()
    merge_files(base, [tmp_path / "one", tmp_path / "two"], tmp_path / "merged", None)
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == shards
    assert difference(live, plain_logits(plain_model(tmp_path / "merged"))) < TOLERANCE


def test_rounding_is_measured(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2-untied", initializer_range=0.1)
    methods.save(trained(opened(base, Lora(rank=4))), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    done = merge_files(base, [tmp_path / "adapter"], tmp_path / "merged", torch.bfloat16)
    exact = merged_by_hand(base, tmp_path / "adapter")
    written = load_file(tmp_path / "merged/model.safetensors")
    before = load_file(base / "model.safetensors")
    changed = [name for name in exact if not torch.equal(exact[name], before[name])]
    lost = sum((written[name].float() - exact[name]).double().square().sum() for name in changed)
    change = sum((exact[name] - before[name]).double().square().sum() for name in changed)
    assert done.rounding == pytest.approx(float((lost / change) ** 0.5), rel=1e-4) and done.rounding > 1e-4
    assert all(value.dtype == torch.bfloat16 for value in written.values())


def merged_by_hand(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """W + B A scale, for plain LoRA."""
    import json

    settings = json.loads((adapter / "adapter_config.json").read_text())
    parts = load_file(adapter / "adapter_model.safetensors")
    weights = load_file(base / "model.safetensors")
    for name in list(weights):
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in parts:
            product = parts[f"{key}.lora_B.weight"] @ parts[f"{key}.lora_A.weight"]
            weights[name] = weights[name] + product * (settings["lora_alpha"] / settings["r"])
    return weights


def test_memory_is_one_weight_not_the_model(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    """How much more main memory the process ever takes is far less than the model's size."""
    base = tmp_path / "base"
    source = tiny_model_dir("qwen2-untied", num_hidden_layers=6, hidden_size=512, intermediate_size=2048)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(source).save_pretrained(base)
    AutoTokenizer.from_pretrained(source).save_pretrained(base)
    methods.save(opened(base, Lora(rank=1)), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    report = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(base), str(tmp_path / "adapter"), str(tmp_path / "merged")],
        capture_output=True,
        text=True,
        check=True,
    )
    size = (base / "model.safetensors").stat().st_size
    assert int(report.stdout) < size / 2, (report.stdout, size)


MEASURE = """
import resource, sys
from pathlib import Path
import peft
from luthier.export.merge import merge_files
base, adapter, out = map(Path, sys.argv[1:])
merge_files(base, [], out, None)        # everything is imported, and every page of the files has been read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge_files(base, [adapter], out, None)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_what_cannot_be_streamed_is_said(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2", initializer_range=0.1)
    methods.save(opened(base, Lora(rank=2, modules_to_save=("lm_head",))), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    with pytest.raises(Unstreamable, match="both ends"):
        merge_files(base, [tmp_path / "adapter"], tmp_path / "merged", None)
    assert not any((tmp_path / "merged").iterdir())


def test_no_adapters_copies_the_weights(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2")
    (tmp_path / "merged").mkdir()
    done = merge_files(base, [], tmp_path / "merged", None)
    assert done.changed == 0
    untouched = live_logits(opened(base, Full()))
    assert difference(untouched, plain_logits(plain_model(tmp_path / "merged"))) == 0.0
