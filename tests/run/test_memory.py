"""What is suggested where memory is used up: flags that apply to the run, computed from its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.base.console import Console
from luthier.base.errors import DoesNotFit
from luthier.base.rundir import RunDir
from luthier.cli.flags import parse
from luthier.engine.mesh import Mesh
from luthier.run.config import RunConfig
from luthier.run.memory import Use, suggestions, within_memory
from luthier.run.parts import Run


def run(device: str = "cpu", world: int = 1, **settings: Any) -> Run:
    config = RunConfig.model_validate(settings)
    return Run(config, Console(quiet=True), Mesh(torch.device(device), world=world), RunDir(Path()), max_length=2048)


EIGHT = {"micro_batch": 8, "accumulation": 8}
CASES: list[tuple[Run, Use, list[str]]] = [
    (
        run(train={**EIGHT, "gradient_checkpointing": False}, method={"type": "full"}),
        "step",
        ["--per_device_train_batch_size 2 --gradient_accumulation_steps 32", "--gradient_checkpointing true",
         "--max_length 1024"],
    ),
    (
        run("cuda", train={"micro_batch": 6, "accumulation": 1}, method={"type": "full"}),
        "step",
        ["--per_device_train_batch_size 1 --gradient_accumulation_steps 6", "--max_length 1024", "--train_type lora"],
    ),
    (
        run("cuda", train={"micro_batch": 1}),
        "step",
        ["--max_length 1024", "--quant_bits 4", "--fsdp full_shard on several"],
    ),
    (
        run("cuda", 2, method={"type": "full"}),
        "weights",
        ["--train_type lora", "--fsdp full_shard", "--optim adamw_8bit"],
    ),
    (
        run("cuda", 2, method={"type": "full"}, train={"shard": "full"}, model={"dtype": "float32"}),
        "weights",
        ["--train_type lora", "--torch_dtype bfloat16", "a smaller model"],
    ),
    (run("cuda", model={"quant": {"bits": 4}}), "weights", ["--lora_rank 4", "a smaller model", "--max_length 1024"]),
    (run(train=EIGHT), "evaluation", ["--per_device_eval_batch_size 2", "--max_length 1024", "--quant_bits 4"]),
]  # fmt: skip


@pytest.mark.parametrize(("run", "use", "expected"), CASES)
def test_the_first_suggestions_are_those_that_cost_least(run: Run, use: Use, expected: list[str]):
    found = suggestions(run, use)
    assert len(found) >= 3
    for said, wanted in zip(found, expected, strict=False):
        assert said.startswith(wanted)
    for said in found:
        if said.startswith("--"):
            parse(said.split(" on ")[0].split(), RunConfig)


def test_a_global_batch_is_kept_by_what_is_suggested():
    for micro, accumulation in ((2, 7), (6, 5), (9, 4), (32, 1)):
        words = suggestions(run(train={"micro_batch": micro, "accumulation": accumulation}), "step")[0].split()
        assert int(words[1]) * int(words[3]) == micro * accumulation and int(words[1]) <= max(1, micro // 4)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "the GPU's memory is used up (CUDA out",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the machine's memory is used up"),
        (DoesNotFit("the evaluation at step 3 does not fit"), "step 3 does not fit. Try --per_device_eval"),
    ],
)
def test_whatever_ran_out_three_things_to_try_are_named(error: Exception, said: str):
    with pytest.raises(DoesNotFit) as caught, within_memory(run(train=EIGHT)):
        raise error
    assert said in str(caught.value) and str(caught.value).count(", or ") == 2 and caught.value.exit_code == 4


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), within_memory(run()):
        raise RuntimeError("shapes cannot be multiplied")
