"""Invariants 1 to 3 for whole runs over processes: one trajectory, checkpoints that any number of processes resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from luthier.engine.checkpoint import read

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"train_type": "full", "learning_rate": 1e-3, "gradient_checkpointing": "true"},
    "lora": {"learning_rate": 1e-2, "lora_dropout": None, "ema_decay": 0.9, "split_dataset_ratio": 0.2},
}
ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}


def final(job: Any) -> dict[str, torch.Tensor]:
    return read(job.checkpoints().named("LATEST"))[1].trained


def alike(job: Any, other: dict[str, torch.Tensor]) -> None:
    for name, weight in final(job).items():
        torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=2e-5)


def form(folder: Path) -> dict[str, Any]:
    """Every file of a checkpoint, and of each set of tensors the names, types and shapes."""
    found: dict[str, Any] = {path.name: None for path in folder.iterdir()}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            found[path.name] = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_sharded_runs_take_the_trajectory_of_one_process_and_resume_on_any_number(
    job: Any, tmp_path: Path, variant: str
):
    flags = VARIANTS[variant]
    job.run(**flags, **ONE)
    losses, alone, alone_form = job.losses(), final(job), form(job.checkpoints().named("LATEST"))
    evaluations = [row["eval_loss"] for row in job.rows() if "eval_loss" in row]

    job.output_dir = tmp_path / "parallel"
    job.run_ranks(2, **flags)
    assert job.losses() == pytest.approx(losses, abs=1e-5)
    alike(job, alone)

    job.output_dir = tmp_path / "sharded"
    said = job.run_ranks(2, fsdp="full_shard", **flags)
    assert "Each of the 2 processes holds a part of the weights" in said
    assert job.losses() == pytest.approx(losses, abs=1e-5)
    assert [row["eval_loss"] for row in job.rows() if "eval_loss" in row] == pytest.approx(evaluations, abs=1e-5)
    alike(job, alone)
    assert form(job.checkpoints().named("LATEST")) == alone_form
    straight, middle = job.final(), job.checkpoints().path(4)

    job.output_dir = tmp_path / "again"
    job.run_ranks(2, fsdp="full_shard", resume_from_checkpoint=middle, **flags)
    assert job.final() == straight, "to the bit"
    for count, more in ((1, {}), (4, {"fsdp": "full_shard"})):
        job.output_dir = tmp_path / f"on-{count}"
        if count == 1:
            job.run(resume_from_checkpoint=middle, **flags, **ONE)
        else:
            job.run_ranks(count, resume_from_checkpoint=middle, **flags, **more)
        assert job.losses() == pytest.approx({step: losses[step] for step in range(5, 9)}, abs=1e-5)
        alike(job, alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sharded_run_leaves_what_plain_tools_open(job: Any, variant: str):
    job.run_ranks(2, fsdp="full_shard", max_steps=2, **VARIANTS[variant])
    folder = job.checkpoints().named("LATEST")
    _, tensors = read(folder)
    if variant == "full":
        from transformers import AutoModelForCausalLM

        opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        assert all(torch.equal(opened[name], weight) for name, weight in tensors.trained.items())
        assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
        assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    else:
        # People use the averaged weights.
        adapter = load_file(folder / "adapter_model.safetensors")
        assert len(adapter) == len(tensors.ema) == len(tensors.trained)
        for name, weight in tensors.ema.items():
            assert torch.equal(adapter[name.replace(".default", "")], weight)
            assert not torch.equal(weight, tensors.trained[name])
