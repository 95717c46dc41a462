"""R1, R2, R5, R8, R13: a resumed run is the run that was never stopped, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

VARIANTS: dict[str, dict[str, Any]] = {
    "sft-lora-packed": {"packing": "true"},
    "sft-full": {"train_type": "full", "learning_rate": 1e-3},
    "pretrain-full": {"train_type": "full", "learning_rate": 1e-3, "objective.type": "pretrain"},
    "sft-lora-ema": {"ema_decay": 0.9, "optim": "muon"},
    "sft-lora-4-bits": {"quant_bits": 4, "optim": "adamw_8bit"},
    "sft-lora-hqq": {"quant_method": "hqq", "packing": "true"},
}
LIBRARIES = {"sft-lora-4-bits": "bitsandbytes", "sft-lora-hqq": "hqq"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_from_any_checkpoint_ends_bit_identical(job: Any, variant: str):
    if variant in LIBRARIES:
        pytest.importorskip(LIBRARIES[variant])
    flags = VARIANTS[variant]
    if "objective.type" in flags:
        job.argv = as_pretrain(job.argv)
        flags = {key: value for key, value in flags.items() if key != "objective.type"}
    job.run(**flags)
    straight, losses = job.final(), job.losses()
    assert sorted(losses) == list(range(1, 9))
    first = job.runs()[0]
    for step in (2, 6):
        job.run(resume_from_checkpoint=first / "checkpoints" / f"step-{step:08d}", **flags)
        assert job.final() == straight
        assert job.losses() == {at: loss for at, loss in losses.items() if at > step}
    assert len(job.runs()) == 3, "an older checkpoint starts a run directory of its own"


def as_pretrain(argv: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda **flags: ["pretrain", *argv(**flags)[1:]]


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_resuming_mid_epoch_reads_the_same_samples_for_any_number_of_workers(job: Any, workers: int):
    job.run(dataloader_num_workers=0)
    straight = job.final()
    checkpoint = job.runs()[0] / "checkpoints" / "step-00000004"
    job.run(resume_from_checkpoint=checkpoint, dataloader_num_workers=workers)
    assert job.final() == straight


def test_the_same_seed_repeats_and_another_does_not(job: Any):
    finals = []
    for seed in (1, 1, 2):
        job.run(seed=seed, max_steps=3)
        finals.append(job.final())
    assert finals[0] == finals[1] != finals[2]


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_broken_newest_checkpoint_is_named_and_the_one_before_is_used(job: Any, damage: str):
    job.run()
    straight, run = job.final(), job.runs()[0]
    bad = run / "checkpoints" / "step-00000008"
    file = bad / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content if damage == "flip" else content[:-10])
    said = job.run(resume_from_checkpoint=run)
    assert "step-00000008 is broken" in said and "optimizer.safetensors" in said
    assert bad.with_name("step-00000008.corrupt").is_dir()
    assert job.runs() == [run] and job.final() == straight
    assert list(job.losses()) == list(range(1, 9)), "no step is logged twice"


def test_resuming_a_finished_run_changes_nothing(job: Any):
    job.run()
    straight, rows = job.final(), job.rows()
    job.run(resume_from_checkpoint="true")
    assert job.final() == straight and job.rows() == rows


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"learning_rate": 2e-2}, "optim.learning_rate"),
        ({"max_length": 48}, "data"),
        ({"lora_rank": 4}, "method.rank"),
        ({"gradient_accumulation_steps": 4}, "global_batch"),
        ({"max_steps": 16}, "train.max_steps"),
        ({"quant_bits": 4}, "model.quant.bits"),
    ],
)
def test_a_changed_setting_is_refused_with_a_diff_or_accepted_by_name(job: Any, flags: dict[str, Any], names: str):
    job.run(max_steps=4)
    base = {"max_steps": 4, "resume_from_checkpoint": job.runs()[0] / "checkpoints" / "step-00000002"}
    said = job.run(expect=2, **{**base, **flags})
    assert names in said and "--allow_change" in said
    if names not in ("method.rank", "model.quant.bits"):  # other weights; no permission makes them fit
        job.run(**{**base, **flags}, allow_change=[names])


def test_an_average_that_begins_on_resumption_starts_from_the_weights_there(job: Any):
    flags = {"train_type": "full", "learning_rate": 1e-3, "max_steps": 4, "save_steps": 2}
    job.run(**flags)
    there = job.runs()[0] / "checkpoints" / "step-00000002"
    job.run(**flags, ema_decay=0.9999, resume_from_checkpoint=there, allow_change="train.ema_decay")
    average, before = load_file(job.checkpoints().path(4) / "ema.safetensors"), load_file(there / "trained.safetensors")
    for name, value in average.items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)


def test_changed_data_is_refused(job: Any, tmp_path: Path):
    job.data = copy(job.data, tmp_path / "mine.jsonl")
    job.run(max_steps=4)
    rows = job.data.read_text().splitlines()
    rows[3] = json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})
    job.data.write_text("\n".join(rows))
    said = job.run(expect=2, resume_from_checkpoint="true", max_steps=4)
    assert "data: not the same" in said


def test_a_changed_model_is_refused(job: Any, tiny_model_dir: Callable[..., Path]):
    job.run(max_steps=4)
    job.model = tiny_model_dir("qwen2", seed=1)
    said = job.run(expect=2, resume_from_checkpoint="true", max_steps=4)
    assert "model: not the same" in said


def copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target
