"""Averages of models are averages of their weights, adapters merged, and plain transformers opens them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.base.errors import ConfigError
from luthier.model.config import ModelConfig
from luthier.run.soup import average

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_a_soup_is_the_weighted_mean(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base, one, two = (tiny_model_dir(seed=seed) for seed in (0, 1, 2))
    average(ModelConfig(path=str(base)), [str(one), str(two)], [1.0, 3.0], 0.8, tmp_path / "soup")
    parts = [weights(folder) for folder in (base, one, two)]
    for name, value in weights(tmp_path / "soup").items():
        wanted = 0.2 * parts[0][name] + 0.2 * parts[1][name] + 0.6 * parts[2][name]
        torch.testing.assert_close(value, wanted)


def test_a_run_with_an_adapter_is_merged_first(job: Any, tmp_path: Path) -> None:
    job.run(max_steps=3)
    said = job.call(
        "soup", "--model", job.model, "--tuned", job.runs()[0], "--share", 0.5, "--output_dir", tmp_path / "half"
    )
    assert "luthier infer" in said
    whole = tmp_path / "whole"
    average(ModelConfig(path=str(job.model)), [str(job.runs()[0])], [1.0], 1.0, whole)
    base, tuned = weights(job.model), weights(whole)
    assert any(not torch.equal(base[name], tuned[name]) for name in base)
    for name, value in weights(tmp_path / "half").items():
        torch.testing.assert_close(value, (base[name] + tuned[name]) / 2)


def test_other_models_are_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the same kind"):
        average(
            ModelConfig(path=str(tiny_model_dir())), [str(tiny_model_dir("qwen2-untied"))], [1.0], 1.0, tmp_path / "x"
        )
