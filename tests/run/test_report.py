"""report.md: what it says about good, bad and interrupted runs; env.json and memory.json."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from luthier.base.rundir import RunDir
from luthier.cli.flags import parse
from luthier.data.config import DataConfig
from luthier.data.report import DataReport, SetReport
from luthier.model.config import ModelConfig, Quant
from luthier.run.config import RunConfig
from luthier.run.environment import environment, git_revision, measured_memory
from luthier.run.plan import RunPlan
from luthier.run.report import Facts, compose, write_report
from luthier.run.resolve import resolve
from luthier.run.usage import Ending, usage

CONFIG = resolve(RunConfig(model=ModelConfig(path="models/my base"), data=DataConfig(datasets=("a.jsonl#500",))))
PLAN = RunPlan(
    model="models/my base",
    parameters=5_000_000,
    trained_parameters=50_000,
    method="lora",
    objective="sft",
    samples=800,
    tokens_per_epoch=123_456,
    steps=50,
    epochs=1.0,
    global_batch=16,
    device="cpu",
    world_size=1,
    run_dir="runs/v1",
)
ENDING = Ending("finished", 50, 65.0, Path("runs/v1/checkpoints/step-00000050"), None)


SET = SetReport(
    name="a.jsonl#500",
    use="train",
    rows=500,
    kept=490,
    dropped={"empty_messages": 10},
    repaired={},
    truncated=0,
    split=0,
    samples=490,
    used=490,
    exact_duplicates=0,
    near_duplicates=0,
    tokens=1000,
    trained_tokens=400,
    lengths=[1, 2, 3, 4, 5],
    stop_share=1.0,
    chats=490,
    ignored_columns=[],
)
DATA = DataReport([SET], overlap=0, max_length=2048)


def train_row(step: int, loss: float) -> dict:
    return {"step": step, "loss": loss, "token_accuracy": 0.5, "tokens": step * 10, "tokens_per_second": 100.0}


def eval_row(step: int, loss: float) -> dict:
    return {"step": step, "eval_loss": loss, "eval_token_accuracy": 0.5, "eval_seconds": 1.0, "best": True}


def facts(
    metrics: list[dict],
    *,
    ending: Ending = ENDING,
    plan: RunPlan = PLAN,
    events: list[dict] | None = None,
    data: DataReport | None = None,
) -> Facts:
    return Facts(Path("runs/v1"), CONFIG, plan, ending, metrics, events or [], data, {}, {}, [], preview=False)


GOOD = [
    eval_row(0, 4.0),
    train_row(1, 4.0),
    train_row(25, 2.0),
    eval_row(25, 2.1),
    train_row(50, 1.0),
    eval_row(50, 1.5),
]


def test_a_good_run_says_what_how_well_and_what_next() -> None:
    text = compose(facts(GOOD, data=DATA))
    assert text.startswith("# v1: finished after 50 steps\n")
    assert "| trained | 50k parameters (1.00%) by lora |" in text
    assert "| training loss | 4.0000 | 1.0000 (step 50) | 1.0000 |" in text
    assert "| loss | 4.0000 | 1.5000 | -2.5000 |" in text  # before and after
    assert "luthier infer --adapters runs/v1/checkpoints/step-00000050" in text
    assert "resume" not in text
    assert "careful" not in text


def test_a_stopped_run_says_so_and_how_to_resume() -> None:
    text = compose(facts(GOOD, ending=replace(ENDING, reason="SIGTERM", step=20)))
    assert text.startswith("# v1: stopped at step 20 of 50 by SIGTERM, can be resumed\n")
    assert "- This run is not complete" in text
    assert "luthier train runs/v1/config.yaml --resume_from_checkpoint runs/v1\n" in text


def test_report_and_pictures_are_written_into_the_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for row in GOOD:
        run.append_json("metrics.jsonl", row)
    run.write_json("env.json", environment(7, torch.device("cpu")))
    run.write_json("memory.json", measured_memory(torch.device("cpu")))
    run.write_json("data_report.json", DATA.to_json())
    path = write_report(run, CONFIG, PLAN, ENDING)
    text = path.read_text()
    assert "| a.jsonl#500 | 490 of 500 |" in text
    assert "10 rows left out (empty_messages 10)" in text
    for name in ("loss", "evaluation"):
        assert f"(plots/{name}.png)" in text
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 1000
    assert f"torch {torch.__version__}" in text
    assert "| seed | 7 |" in text
    assert "resident peak" in text


def test_a_run_that_never_logged_still_gets_a_report(tmp_path: Path) -> None:
    ending = replace(ENDING, reason="failed", step=0, checkpoint=None, message="the loss is not finite")
    text = write_report(RunDir(tmp_path), CONFIG, PLAN, ending).read_text()
    assert "failed at step 0 of 50" in text
    assert "the loss is not finite" in text
    assert "No step was logged." in text


def test_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    found = environment(1, torch.device("cpu"))
    assert "secret" not in str(found)
    assert found["device"] == "cpu"
    assert found["packages"]["torch"] == torch.__version__


def test_no_git_revision_outside_a_repository(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None


def test_memory_is_measured() -> None:
    measured = measured_memory(torch.device("cpu"))["measured"]
    assert 0.05 < measured["resident_peak_gib"] < 64


@pytest.mark.parametrize(
    "quant",
    [
        Quant(bits=4),
        Quant(bits=4, format="fp4", double_quant=False, skip=("o_proj", "layers.3")),
        Quant(method="hqq", bits=2, group_size=16),
    ],
)
def test_a_base_in_few_bits_is_named_and_held_so_again(quant: Quant) -> None:
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"quant": quant})})
    command = usage(Path("runs/v1"), config, ENDING)["Teach it more, from other data"]
    parsed = parse(shlex.split(command)[2:], RunConfig)
    assert RunConfig.model_validate({**parsed.tree, "method": {"type": "lora"}}).model.quant == quant
    said = compose(replace(facts([train_row(1, 2.0), train_row(50, 1.0)]), config=config))
    assert f"trained over a base held in {quant.bits} bits ({quant.method})" in said
    assert "bits" not in compose(facts([train_row(1, 2.0)]))
