"""Other tasks than language modelling keep the promises of a run: a resumed one ends as the one that went through, and
several processes take the steps of one; losses in which all rows of a step meet, and several tasks at once, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LINES, save_model, save_tokenizer
from encoders import save_encoder
from samples import ROWS

from luthier.engine.checkpoint import read
from luthier.model.config import Shape
from luthier.model.scratch_encoders import t5_tokenizer, write_encoder

TASKS: dict[str, dict[str, Any]] = {
    "seq_cls": {"dataset": "classes", "class_weights": "balanced"},
    "token_cls": {"dataset": "tags"},
    "mlm": {"dataset": "texts"},
    "embedding": {"dataset": "pairs", "infonce_hard_negatives": 1},
    "reranker": {"dataset": "pairs", "loss_type": "listwise_reranker"},
    "cosent": {"task_type": "embedding", "dataset": "scored"},
    "cosine": {"task_type": "embedding", "dataset": "scored", "loss_type": "cosine_similarity"},
    "seq2seq": {"dataset": "chats", "objective.generate": "false"},
    "span_corruption": {"dataset": "texts", "objective.density": 0.4},
    "distill": {"dataset": "chats", "teacher": "another"},
    "generative_reranker": {"dataset": "pairs", "positive_token": "a", "negative_token": "b", "max_length": 600},
    "multi": {
        "dataset": None,
        "tasks": ["mood=classes", "names=tags", "words=texts"],
        "tasks.words.objective.type": "mlm",
        "tasks.mood.ratio": 2,
        "tasks.names.ratio": 1,
        "tasks.words.ratio": 1,
        "tasks.mood.weight": 0.5,
    },
}


def flags(job: Any, task: str, **encoder: Any) -> dict[str, Any]:
    """The words that train a small encoder for a task."""
    for name, rows in ROWS.items():
        (job.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def place(word: Any) -> Any:
        name, equals, rows = str(word).rpartition("=")
        return f"{name}{equals}{job.folder / rows}.jsonl" if rows in ROWS else word

    if task in ("seq2seq", "span_corruption"):
        job.model = t5(job.folder / "t5", dropout=0.0 if encoder else 0.1)
    elif task == "distill":
        TASKS[task]["teacher"] = another(job.folder / "teacher")
    elif task == "generative_reranker":
        job.model = roomy(job.folder / "roomy")
    else:
        job.model = save_encoder(job.folder / "encoder", "bert", **encoder)
    named = {
        name: [place(word) for word in value] if isinstance(value, list) else place(value)
        for name, value in TASKS[task].items()
    }
    return {"train_type": "full", "learning_rate": 1e-3, "task_type": task, **named}


def t5(folder: Path, dropout: float) -> Path:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = t5_tokenizer([*LINES, *(chr(97 + n % 26) * (n % 7 + 1) for n in range(200))], 300)
    shape = Shape(architecture="t5", vocab_size=300, max_position_embeddings=128, initializer_range=0.2, **size)
    write_encoder(folder, tokenizer, shape, seed=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout_rate": dropout}))
    return folder


def another(folder: Path) -> Path:
    save_model(folder, save_tokenizer(folder), "qwen2", seed=3)
    return folder


def roomy(folder: Path) -> Path:
    """A model that holds a prompt of several hundred letters, each a token, and texts in it."""
    save_model(folder, save_tokenizer(folder), "qwen2", max_position_embeddings=600)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 600}))
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_ends_as_the_one_that_went_through(job: Any, task: str):
    words = flags(job, task)
    job.run(**words)
    straight, losses = job.final(), job.losses()
    assert sorted(losses) == list(range(1, 9)) and losses[8] != losses[1]
    job.run(resume_from_checkpoint=job.runs()[0] / "checkpoints" / "step-00000004", **words)
    assert job.final() == straight
    assert job.losses() == {step: loss for step, loss in losses.items() if step > 4}


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_take_the_steps_of_one(job: Any, task: str):
    words = flags(job, task, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    words |= {"optim": "sgd", "learning_rate": 0.05, "save_steps": 8}
    job.run(**words)
    alone = [{name: value for name, value in row.items() if is_told(name)} for row in job.rows() if "loss" in row]
    job.run_ranks(2, **words)
    both = [{name: value for name, value in row.items() if is_told(name)} for row in job.rows() if "loss" in row]
    assert len(alone) == len(both) == 8
    for one, two in zip(alone, both, strict=True):
        assert two == pytest.approx(one, rel=2e-5, abs=1e-7)


def is_told(name: str) -> bool:
    return name in ("loss", "grad_norm", "tokens", "trained_tokens") or name.endswith(("/loss", "accuracy"))


def test_what_several_tasks_learned_is_opened_one_by_one(job: Any):
    words = flags(job, "multi")
    said = job.run(**words, **{"tasks.mood.validation": job.folder / "classes.jsonl"})
    assert "mood (seq_cls), names (token_cls), words (mlm)" in said
    run = job.runs()[-1]
    rows = job.rows()
    assert {"mood/loss", "mood/weighted_loss", "names/loss", "words/loss"} <= {key for row in rows for key in row}
    assert any("eval_mood/accuracy" in row for row in rows) and not any("eval_names/loss" in row for row in rows)
    found = [json.loads(line) for line in (run / "mood-predictions.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (job.folder / "classes.jsonl").read_text().splitlines()]
    assert {Path(row["file"]).name for row in found} == {"classes.jsonl"}
    assert [row["reference"] for row in found] == [rows[row["line"] - 1]["label"] for row in found]
    assert (run / "plots" / "tasks.png").exists()
    place = run / "checkpoints" / "step-00000008"
    for task, answer in (("mood", "label"), ("names", "tags")):
        source = job.folder / ("classes.jsonl" if task == "mood" else "tags.jsonl")
        job.call(
            "infer", "--model", place / "heads" / task, "--val_dataset", source, "--result_path", job.folder / task
        )
        assert answer in json.loads((job.folder / task).read_text().splitlines()[0])
    said = job.call("infer", "--model", run, "--val_dataset", source, "--result_path", job.folder / "no", expect=2)
    assert "several tasks" in " ".join(said.split()) and str(place / "heads" / "mood") in said  # lines break anywhere
    report = Path(run / "report.md").read_text()
    assert "Open names without Luthier" in report and "AutoModelForTokenClassification" in report


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"dataset": "texts"}, "each task has its own sets"),
        ({"packing": "true"}, "--packing"),
        ({"fsdp": "full_shard"}, "not split over processes"),
        ({"streaming": "true"}, "not streamed"),
        ({"tasks": ["mood=classes"], "tasks.names.ratio": None}, "at least two"),
        ({"tasks": ["mood"]}, "NAME=DATA"),
    ],
)
def test_what_several_tasks_cannot_do_is_said_at_once(job: Any, more: dict[str, Any], told: str):
    words = {**flags(job, "multi"), **more}
    if "tasks" in more:
        words = {name: value for name, value in words.items() if not name.startswith("tasks.")}
    assert told in job.run(expect=2, **words)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("task", ["seq_cls", "token_cls", "mlm", "embedding", "reranker"])
def test_models_of_other_tasks_are_split_over_processes(job: Any, task: str, method: str):
    words = flags(job, task, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    words |= {"optim": "sgd", "learning_rate": 0.05, "save_steps": 4, "train_type": method, "lora_dropout": None}
    job.run(**words)
    alone, straight = job.losses(), job.checkpoints().named("LATEST")
    said = job.run_ranks(2, fsdp="full_shard", **words)
    assert "Each of the 2 processes holds a part of the weights" in said
    assert job.losses() == pytest.approx(alone, rel=2e-5)
    split = job.checkpoints().named("LATEST")
    assert {path.name for path in split.iterdir()} == {path.name for path in straight.iterdir()}
    weights = read(split)[1].trained
    for name, weight in read(straight)[1].trained.items():
        if task == "embedding" and "pooler" in name:
            continue  # no loss reaches it: it only decays, and where it is split it rests
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=2e-5)
    middle = job.runs()[-1] / "checkpoints" / "step-00000004"
    job.run_ranks(2, fsdp="full_shard", resume_from_checkpoint=middle, **words)
    assert job.losses() == pytest.approx({step: loss for step, loss in alone.items() if step > 4}, rel=2e-5)
