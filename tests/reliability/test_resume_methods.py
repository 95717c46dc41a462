"""A run of any method that is taken up again ends bit for bit where it would have ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

VARIANTS: dict[str, dict[str, Any]] = {
    "adalora": {"train_type": "adalora", "adalora_init_r": 6, "adalora_target_r": 3},
    "vera": {"train_type": "vera", "vera_rank": 8, "vera_dropout": 0.1},
    "ia3-noise": {"train_type": "ia3", "neftune_noise_alpha": 5},
    "oft": {"train_type": "oft", "oft_block_size": 8},
    "ln_tuning": {"train_type": "ln_tuning"},
    "prompt": {"train_type": "prompt", "num_virtual_tokens": 3},
    "prefix": {"train_type": "ptuning_v2", "num_virtual_tokens": 3, "prefix_projection": "true"},
    "ptuning-lstm": {"train_type": "ptuning", "encoder_reparameterization_type": "LSTM"},
    "bitfit": {"train_type": "bitfit"},
    "lisa-noise": {"train_type": "lisa", "lisa_activated_layers": 1, "lisa_step_interval": 3, "neftune_noise_alpha": 5},
    "gradual": {"train_type": "gradual", "unfreeze_every": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_as_the_one_that_went_through(job: Any, variant: str):
    flags = VARIANTS[variant]
    job.run(**flags)
    straight, losses = job.final(), job.losses()
    assert sorted(losses) == list(range(1, 9))
    assert losses[8] != losses[1]
    job.run(resume_from_checkpoint=job.runs()[0] / "checkpoints" / "step-00000004", **flags)
    assert job.final() == straight
    assert job.losses() == {step: loss for step, loss in losses.items() if step > 4}


def test_layers_at_rest_keep_no_state(job: Any):
    from safetensors import safe_open

    job.run(train_type="lisa", lisa_activated_layers=1, lisa_step_interval=2)
    with safe_open(job.checkpoints().named("LATEST") / "optimizer.safetensors", "pt") as file:
        names = {name.split("::")[0] for name in file.keys()}  # noqa: SIM118 (not a mapping)
    layers = {name.split(".")[2] for name in names if ".layers." in name}
    assert len(layers) == 1 and any("embed_tokens" in name for name in names)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"train_type": "prefix", "gradient_checkpointing": "true"}, "computed again"),
        ({"train_type": "boft", "quant_bits": 4}, "over weights held in 4 bits cannot be trained"),
        ({"train_type": "prompt", "packing": "true"}, "texts are padded then"),
        ({"train_type": "prefix", "task_type": "seq_cls"}, "before causal language models only"),
        ({"train_type": "lisa", "fsdp": "full_shard"}, "not split over processes"),
        ({"train_type": "ptuning", "ema_decay": 0.9}, "not an average"),
        ({"train_type": "ptuning", "adapters": "somewhere"}, "cannot be trained further"),
    ],
)
def test_what_a_method_cannot_is_refused_at_once(job: Any, flags: dict[str, Any], says: str):
    said = job.run(expect=2, **flags)
    assert says in said and not job.runs()


def test_padding_is_said_aloud(job: Any):
    said = job.run(train_type="prompt", max_steps=1)
    assert "padded, not packed" in said
    settings = json.loads((job.checkpoints().named("LATEST") / "adapter_config.json").read_text())
    assert settings["peft_type"] == "PROMPT_TUNING" and settings["num_virtual_tokens"] == 20
