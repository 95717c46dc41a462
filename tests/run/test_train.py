"""Whole runs through the command line: what is evaluated, kept, logged, and how settings change what is learned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

ONE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
"""One micro-batch makes a step."""


def evaluations(job: Any) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in job.rows() if "eval_loss" in row}


def saved(job: Any) -> list[int]:
    return [int(path.name[-8:]) for path in job.checkpoints().all()]


def adapter(job: Any, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(job.checkpoints().named("LATEST") / name)


def test_the_directory_of_a_run_is_complete(job: Any):
    job.run(split_dataset_ratio=0.2, eval_steps=4, save_total_limit=2, report_to="tensorboard")
    (run,) = job.runs()
    assert re.fullmatch(r"v1-\d{8}-\d{6}", run.name)
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    for name in ("config.yaml", "env.json", "data_report.json", "preview.html", "memory.json", "report.md"):
        assert (run / name).stat().st_size > 0, name
    assert {f"plots/{name}.png" for name in ("loss", "learning_rate", "grad_norm", "evaluation")} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    checkpoint = {
        path.relative_to(run / "checkpoints" / "step-00000008").as_posix()
        for path in (run / "checkpoints" / "step-00000008").iterdir()
    }
    assert checkpoint == {
        *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "config.yaml", "MANIFEST.json"),
        *("optimizer.safetensors", "state.json", "tokenizer.json", "tokenizer_config.json", "trained.safetensors"),
    }
    assert {"checkpoints/LATEST", "checkpoints/BEST"} <= names
    assert set(json.loads((run / "env.json").read_text())) >= {"packages", "device", "git", "seed", "python"}
    _metrics(job)
    _events(job)


def _metrics(job: Any) -> None:
    rows = [row for row in job.rows() if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9))
    keys = ("total_steps", "epoch", "loss", "token_accuracy", "grad_norm", "learning_rate", "tokens", "trained_tokens")
    for row in rows:
        assert {*keys, "tokens_per_second", "seconds_per_step", "memory_gib", "eta_seconds", "time"} < row.keys()
    assert [row["epoch"] for row in rows] == [0.125 * step for step in range(1, 9)], "4 of 32 samples a step"
    assert 0 < rows[0]["trained_tokens"] < rows[0]["tokens"] < rows[1]["tokens"]
    assert rows[-1]["eta_seconds"] == 0.0 and rows[0]["learning_rate"] == 1e-2 > rows[-1]["learning_rate"] > 0
    assert list(evaluations(job)) == [0, 4, 8], "before the first step, during, and at the end"


def _events(job: Any) -> None:
    rows = job.rows("events.jsonl")
    for row in rows:
        assert row["object"] == "fine_tuning.job.event" and row["id"].startswith("ftevent-")
        assert row["level"] in ("info", "warn", "error") and row["type"] in ("message", "metrics")
        assert isinstance(row["created_at"], int) and isinstance(row["message"], str)
    kinds = [row["data"]["event"] for row in rows if "event" in row["data"]]
    assert kinds == ["started", *["checkpoint"] * 4, "finished"]
    metrics = [row["data"] for row in rows if row["type"] == "metrics"]
    assert sum("full_valid_loss" in data for data in metrics) == 3
    assert [data["step"] for data in metrics if "train_loss" in data] == list(range(1, 9))
    # Of one step, first how it went, then how the model does, then that it is kept.
    told = [(data["step"], order) for data in (row["data"] for row in rows) if (order := _order(data)) is not None]
    assert told == sorted(told)


def _order(data: dict[str, Any]) -> int | None:
    if "train_loss" in data:
        return 0
    if "full_valid_loss" in data:
        return 1
    return 2 if data.get("event") == "checkpoint" else None


BACKWARDS = {"greater_is_better": "true", "split_dataset_ratio": 0.2, "eval_steps": 1}
"""A falling loss then counts as getting worse, for every learning rate and every version of torch."""


def test_the_best_checkpoint_is_named_and_survives_the_limit(job: Any):
    job.run(save_steps=1, save_total_limit=1, max_steps=4, **BACKWARDS, **ONE)
    losses = [row["eval_loss"] for row in evaluations(job).values()]
    assert losses == sorted(losses, reverse=True)
    assert [step for step, row in evaluations(job).items() if row["best"]] == [1]
    assert job.checkpoints().named("BEST") == job.checkpoints().path(1)
    assert saved(job) == [1, 4]


def test_the_last_step_is_judged_before_it_is_kept(job: Any):
    job.run(save_steps=2, max_steps=4, eval_steps=3, split_dataset_ratio=0.2)
    assert [step for step, row in evaluations(job).items() if row["best"]] == [3, 4]
    assert job.checkpoints().named("BEST") == job.checkpoints().path(4)


def test_patience_ends_a_run_that_no_longer_improves(job: Any):
    job.run(save_steps=100, max_steps=100, early_stopping_patience=2, **BACKWARDS, **ONE)
    assert list(evaluations(job)) == [0, 1, 2, 3]
    assert job.rows("events.jsonl")[-1]["data"]["reason"] == "early_stopped"
    assert saved(job) == [1, 3], "the best and the last"
    assert "no longer improved" in (job.runs()[-1] / "report.md").read_text()


def test_a_run_that_has_made_all_its_steps_is_finished_whatever_its_patience(job: Any):
    job.run(save_steps=100, max_steps=3, early_stopping_patience=2, **BACKWARDS, **ONE)
    assert job.rows("events.jsonl")[-1]["data"]["reason"] == "finished"


def test_accuracy_can_say_which_checkpoint_is_best(job: Any):
    flags = {"metric_for_best_model": "token_accuracy", "greater_is_better": "true", "split_dataset_ratio": 0.2}
    job.run(eval_steps=2, **flags)
    values = {step: row["eval_token_accuracy"] for step, row in evaluations(job).items() if step > 0}
    best = max(values, key=lambda step: (values[step], -step))
    assert job.checkpoints().named("BEST") == job.checkpoints().path(best)


def test_a_limit_keeps_the_newest_checkpoints(job: Any):
    job.run(save_steps=1, save_total_limit=3)
    assert saved(job) == [6, 7, 8]


def test_the_average_of_the_weights_is_what_is_saved(job: Any):
    job.run(train_type="full", ema_decay=0.5, save_steps=1, max_steps=3, learning_rate=1e-3, **ONE)
    steps = {int(path.name[-8:]): path for path in job.checkpoints().all()}
    live = {step: load_file(path / "trained.safetensors") for step, path in steps.items()}
    average = load_file(job.model / "model.safetensors")
    for step in (1, 2, 3):
        average = {name: 0.5 * value + 0.5 * live[step][name] for name, value in average.items()}
        for name, value in load_file(steps[step] / "model.safetensors").items():
            torch.testing.assert_close(value, average[name], rtol=0, atol=1e-6)
    assert any(not torch.equal(value, live[3][name]) for name, value in average.items())


def test_the_config_of_a_run_alone_repeats_it_bit_for_bit(job: Any):
    flags = {"split_dataset_ratio": 0.2, "eval_steps": 3, "warmup_ratio": 0.3, "optim": "muon", "system": "Be kind."}
    job.run(**flags)
    straight, losses, config = job.final(), job.losses(), job.runs()[0] / "config.yaml"
    job.output_dir = job.folder / "again"
    job.call("train", config, "--output_dir", job.output_dir)
    assert job.final() == straight and job.losses() == losses


def test_a_run_stands_for_its_checkpoint_when_it_is_trained_further(job: Any):
    job.run(max_steps=2)
    first = job.runs()[0]
    job.output_dir = job.folder / "further"
    job.run(max_steps=2, adapters=first)
    config = yaml.safe_load((job.runs()[0] / "config.yaml").read_text())
    assert config["model"]["adapters"] == [str(first / "checkpoints" / "step-00000002")]
    whole = job.folder / "whole"
    job.output_dir = whole
    job.run(max_steps=2, train_type="full")
    job.output_dir = job.folder / "more"
    job.run(max_steps=2, train_type="full", model=whole)


OPTIMIZERS = ("adamw", "adam", "sgd", "adagrad", "adafactor", "muon")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(job: Any, name: str):
    rate = {"sgd": 0.1, "adagrad": 1e-2, "muon": 1e-3}.get(name, 1e-3)
    flags = {"train_type": "full", "optim": name, "learning_rate": rate, "lr_scheduler_type": "constant"}
    job.run(max_steps=3, save_steps=100, per_device_train_batch_size=40, gradient_accumulation_steps=1, **flags)
    first, second, third = job.losses().values()
    assert first > second > third


def test_epochs_and_steps_say_how_long(job: Any):
    job.run(max_steps=None, num_train_epochs=1.5, save_steps=None, **ONE)
    rows = job.rows()
    assert (rows[-1]["step"], rows[-1]["epoch"]) == (15, 1.5)
    job.run(max_steps=12, num_train_epochs=1, save_steps=None, **ONE)
    assert (job.rows()[-1]["step"], job.rows()[-1]["epoch"]) == (12, 1.2), "steps win"


def test_checkpointing_activations_changes_no_number(job: Any):
    found: list[dict[int, float]] = []
    for on in ("true", "false"):
        job.run(max_steps=3, save_steps=100, gradient_checkpointing=on, **ONE)
        found.append(job.losses())
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def changed(job: Any) -> dict[str, float]:
    """How far each weight of the model has moved, by name."""
    before, after = load_file(job.model / "model.safetensors"), adapter(job, "model.safetensors")
    assert before.keys() == after.keys()
    return {name: (after[name] - value).abs().max().item() for name, value in before.items()}


def test_freezing_moves_the_named_layers_alone(job: Any):
    job.run(train_type="freeze", freeze_trainable_layers=1, max_steps=1, lora_dropout=None)
    moved = {name for name, distance in changed(job).items() if distance}
    assert moved and all(name.startswith("model.layers.1.") for name in moved)


def test_lower_layers_learn_slower(job: Any):
    flags = {"train_type": "full", "weight_decay": 0, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    job.run(max_steps=1, layer_decay=0.1, **flags, **ONE)
    distances = changed(job)
    # Adam's first step is as long as the rate wherever there is a gradient.
    assert distances["model.norm.weight"] == pytest.approx(1e-3, rel=0.01)
    assert distances["model.layers.1.mlp.up_proj.weight"] == pytest.approx(1e-4, rel=0.01)
    assert distances["model.layers.0.mlp.up_proj.weight"] == pytest.approx(1e-5, rel=0.01)
    assert distances["model.embed_tokens.weight"] == pytest.approx(1e-6, rel=0.05)


def test_lora_plus_moves_b_further(job: Any):
    job.run(max_steps=1, lorap_lr_ratio=4, weight_decay=0, learning_rate=1e-3, lr_scheduler_type="constant", **ONE)
    steps = [value.abs().max().item() for name, value in adapter(job).items() if "lora_B" in name]
    assert steps and all(step == pytest.approx(4e-3, rel=0.01) for step in steps), "B starts at zero"


def test_sets_are_mixed_by_their_ratios(job: Any):
    files = [job.folder / "many.jsonl", job.folder / "few.jsonl"]
    for file, rows in zip(files, (40, 10), strict=True):
        file.write_text("".join(json.dumps({"query": f"{file.stem} {n}", "response": "x"}) + "\n" for n in range(rows)))
    job.run(dataset=files, interleave_prob=[0.5, 0.5], stopping_strategy="first_exhausted", max_steps=None, **ONE)
    started = next(row["data"] for row in job.rows("events.jsonl") if row["data"].get("event") == "started")
    assert 15 <= started["samples"] <= 25, "the small set ends the epoch"


def test_a_stream_resumes_exactly(job: Any):
    flags = {"streaming": "true", "shuffle_buffer_size": 16, "max_steps": 14, "save_steps": 7, **ONE}
    job.run(**flags)
    straight, losses = job.final(), job.losses()
    job.run(resume_from_checkpoint=job.runs()[0] / "checkpoints" / "step-00000007", **flags)
    assert job.final() == straight
    assert job.losses() == {step: loss for step, loss in losses.items() if step > 7}


def test_text_is_packed_for_pretraining(job: Any):
    file = job.folder / "corpus.txt"
    file.write_text("".join(f"Line {n} of a corpus, which is short.\n" for n in range(60)))
    flags = {"train_type": "full", "learning_rate": 1e-3, "max_length": 128, "max_steps": None}
    job.run(command="pretrain", dataset=file, num_train_epochs=2, **flags, **ONE)
    rows = [row for row in job.rows() if "loss" in row]
    report = json.loads((job.runs()[-1] / "data_report.json").read_text())
    assert report["sets"][0]["samples"] == 60
    assert rows[-1]["tokens"] == 2 * report["sets"][0]["tokens"], "every token of every epoch"
    assert len(rows) < 2 * 60 / 4 / 2, "several lines in each pack"
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_length_the_model_cannot_hold_is_told_where_it_was_asked_for(job: Any):
    assert "the longest the model can hold" not in job.run(max_steps=1, max_length=None)
    assert "max_length is 128 tokens, the longest the model can hold" in job.run(max_steps=1, max_length=4096)


def test_the_result_is_used_from_the_output_directory_alone(job: Any):
    said = job.run(max_steps=2, eval_steps=1)
    assert "nothing will be evaluated" in said and "--split_dataset_ratio" in said
    few = ["--max_new_tokens", "4"]
    answers = job.call("infer", "--adapters", job.output_dir, *few, stdin="What is 3 and one?\nexit\n")
    assert answers.count("\n") == 1, "piped, there is nothing but the answer"
    result = job.folder / "answers" / "answers.jsonl"
    words = ["--val_dataset", job.data, "--result_path", result, "--json", *few]
    *_, last = job.call("infer", "--adapters", job.runs()[0], *words).splitlines()
    told = {"type": "result", "summary": f"40 answers and 0 errors: {result}", "result_path": str(result)}
    assert json.loads(last) == told
    assert len(result.read_text().splitlines()) == 40


def test_the_command_of_other_tools_runs_on_real_data(job: Any, test_data: Path, tiny_model_dir: Callable[..., Path]):
    demo = test_data / "llamafactory-demo"
    sets = [f"{demo / name}#500" for name in ("alpaca_zh_demo.json", "alpaca_en_demo.json", "identity.json")]
    words = """--train_type lora --torch_dtype bfloat16 --num_train_epochs 1 --per_device_train_batch_size 1
    --per_device_eval_batch_size 1 --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 --target_modules all-linear
    --gradient_accumulation_steps 16 --eval_steps 50 --save_steps 50 --save_total_limit 5 --logging_steps 5
    --max_length 2048 --warmup_ratio 0.05 --dataloader_num_workers 4 --model_author swift --model_name swift-robot"""
    model = tiny_model_dir("qwen2", max_position_embeddings=2048)
    ours = ["--max_steps", "4", "--split_dataset_ratio", "0.01", "--data.cache_dir", job.folder / "cache"]
    ours += ["--system", "You are a helpful assistant.", "--output_dir", job.output_dir]
    said = job.call("sft", "--model", model, "--dataset", *sets, *words.split(), *ours)
    assert "Talk to it" in said and (job.runs()[-1] / "report.md").exists()
    assert "teacher" not in said
    before, after = (row["eval_loss"] for row in evaluations(job).values())
    assert after < before
    report = json.loads((job.runs()[-1] / "data_report.json").read_text())
    assert [(part["rows"], part["used"]) for part in report["sets"]] == [(500, 500), (500, 500), (91, 500)]
    page = (job.runs()[-1] / "preview.html").read_text(encoding="utf-8")
    assert "swift-robot" in re.sub("<[^>]+>", "", page) and "{{" not in page
