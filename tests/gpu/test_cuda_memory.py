"""Sharding and running out of memory on a CUDA device.  One device only: nothing here has been seen on two.

pytest -m gpu -n 0 -s tests/gpu/test_cuda_memory.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import places
from torch import Tensor

from luthier.cli.app import main
from luthier.data.batch import Group, Tokens, collate
from luthier.data.render import Renderer
from luthier.engine.mesh import Mesh
from luthier.engine.step import begin
from luthier.model import methods
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.sharding import shard, whole
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda", 0)
METHODS: dict[str, Method] = {"full": Full(), "lora": Lora(rank=4, init="gaussian")}
WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "initializer_range": 0.05}


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A group of one process, over NCCL."""
    for name, value in places(1)[0].items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("nccl", device_id=DEVICE)
    yield
    dist.destroy_process_group()


def opened(folder: Path, method: Method, device: str, *, widen: bool) -> Model:
    config = ModelConfig(path=str(folder), dtype="bfloat16")
    model = load_model(config, torch.device(device), tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, method, widen=widen)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.trained().items():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    model.train_mode()
    return model


def step(model: Model) -> tuple[float, dict[str, Tensor]]:
    rng = np.random.default_rng(0)
    groups: list[Group] = []
    for length in rng.integers(20, 120, 16).tolist():
        weights = (np.arange(length) >= length // 2).astype(np.float32)
        groups.append(Group((Tokens(rng.integers(3, 390, length).astype(np.int32), weights),)))
    batches = [collate(groups[start : start + 8], range(8)).to(DEVICE) for start in (0, 8)]
    result = begin(model, Language(Sft(), cast(Renderer, None)), batches, Mesh(DEVICE), max_norm=0.0).read()
    return result.loss, {n: whole(w.grad) for n, w in model.trained().items() if w.grad is not None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("group")
def test_a_sharded_step_is_the_plain_one_up_to_the_rounding_of_bfloat16(
    tiny_model_dir: Callable[..., Path], method: str
):
    folder = tiny_model_dir("qwen2", **WIDE)
    loss, plain = step(opened(folder, METHODS[method], "cuda:0", widen=True))
    model = opened(folder, METHODS[method], "cpu", widen=False)
    shard(model, DEVICE)
    assert all(weight.device == DEVICE for weight in model.network.parameters())
    sharded_loss, sharded = step(model)
    assert sharded_loss == pytest.approx(loss, rel=2e-3) and sharded.keys() == plain.keys()
    left, right = (torch.cat([found[name].flatten().float() for name in plain]) for found in (plain, sharded))
    distance = float((left - right).norm() / left.norm())
    print(f"\n{method}: loss {loss:.5f} and {sharded_loss:.5f}, gradients {distance:.2%} apart")
    assert distance < 0.05
    assert all(gradient.dtype == torch.float32 for gradient in sharded.values())


def test_a_device_that_is_really_full_halves_the_micro_batches(tmp_path: Path, tiny_model_dir: Callable[..., Path]):
    data = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}. " * 12}]}
        for n in range(128)
    ]
    data.write_text("\n".join(json.dumps(row) for row in rows))

    def run(name: str) -> tuple[int, list[dict[str, Any]], list[float]]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        words = {
            "model": tiny_model_dir("qwen2", **WIDE), "dataset": data, "output_dir": tmp_path / name,
            "cache_dir": tmp_path / "cache", "train_type": "full", "torch_dtype": "bfloat16", "max_length": 128,
            "max_steps": 4, "per_device_train_batch_size": 128, "gradient_accumulation_steps": 1,
            "learning_rate": 1e-4, "gradient_checkpointing": "false", "report_to": "none", "logging_steps": 1,
        }  # fmt: skip
        code = main(["sft", *(word for flag, value in words.items() for word in (f"--{flag}", str(value)))])
        folder = next((tmp_path / name).glob("v*"))
        events = [json.loads(line)["data"] for line in (folder / "events.jsonl").read_text().splitlines()]
        losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return code, events, losses

    code, events, losses = run("roomy")
    peak = torch.cuda.max_memory_reserved()
    assert code == 0 and not [event for event in events if event.get("event") == "halved_micro_batch"]
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(0.8 * peak / total)
    try:
        code, events, halved = run("full")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert code == 0
    assert len([event for event in events if event.get("event") == "halved_micro_batch"]) == 1
    assert halved == pytest.approx(losses, rel=5e-3)
