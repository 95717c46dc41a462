"""A run that adds tokens: the base is made once, the rows move, and the result is used by its directory alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def test_tokens_are_added_trained_and_used(job: Any):
    flags: dict[str, Any] = {"add_tokens": "加一", "new_special_tokens": "<|tool|>", "learn_tokens": 5}
    said = job.run(**flags)
    assert "7 tokens more" in said and "加一" in said
    (base,) = job.output_dir.glob("base-*")
    settings = json.loads((job.checkpoints().named("LATEST") / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base.resolve())
    assert len(settings["trainable_token_indices"]["embed_tokens"]) == 7
    straight = job.final()
    assert "tokens more" not in job.run(resume_from_checkpoint=job.runs()[0] / "checkpoints" / "step-00000004", **flags)
    assert job.final() == straight and list(job.output_dir.glob("base-*")) == [base]
    questions = job.folder / "questions.jsonl"
    questions.write_text(json.dumps({"messages": [{"role": "user", "content": "3 加一?"}]}) + "\n")
    answers = job.folder / "answers.jsonl"
    job.call(
        "infer", "--adapters", job.runs()[0], "--val_dataset", questions, "--result_path", answers,
        "--max_new_tokens", 4,
    )  # fmt: skip
    assert json.loads(answers.read_text())


def test_new_tokens_that_would_not_move_are_refused(job: Any):
    assert "never move" in job.run(expect=2, train_type="ia3", add_tokens="加一")


def test_a_text_that_is_not_enough_for_the_tokens_to_learn_is_told(job: Any):
    said = job.run(learn_tokens=10_000, max_steps=1)
    assert "was enough to learn" in said and "not 10000" in said
