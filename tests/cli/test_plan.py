"""`luthier plan` and `luthier compare` as commands: words, exit codes, what a program reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.base.errors import ConfigError
from luthier.cli.app import main
from luthier.cli.plan import read


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"query": f"{n}?", "response": f"{n}!"}) for n in range(20)))
    return file


def test_own_words_are_told_from_the_trainings() -> None:
    asked = read(
        ["sft", "--device", "4090", "--model", "m", "--devices=4", "--memory", "24GiB", "--html", "p.html"], {}
    )
    assert (asked.objective, asked.device, asked.devices, asked.memory) == ("sft", "4090", 4, 24.0)
    assert asked.html == "p.html" and asked.flags == ["--model", "m"]
    plain = read(["recipe.yaml", "--model", "m"], {"NPROC_PER_NODE": "2"})
    assert (plain.objective, plain.device, plain.devices) == (None, None, 2)
    assert str(plain.recipe) == "recipe.yaml" and plain.flags == ["--model", "m"]
    assert read(["pt", "--model", "m"], {}).objective == "pretrain"
    assert read(["sft", "--model", "m", "--dry_run"], {}).flags == ["--model", "m"], "flags of a training as they are"
    for words, told in (
        (["--device"], "expected the name of a device"),
        (["--memory", "--model"], "expected a number of GiB"),
        (["--memory", "-3"], "above 0"),
        (["--devices", "1.5"], "whole number"),
        (["--device", "a", "--device", "b"], "given twice"),
    ):
        with pytest.raises(ConfigError, match=told):
            read(words, {})


def test_a_plan_for_a_program_and_a_page(chats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "plan",
        "sft",
        "--model",
        "nano",
        "--dataset",
        str(chats),
        "--lora_rank",
        "4",
        "--html",
        str(tmp_path / "p.html"),
    ]
    assert main([*words, "--device", "L4", "--json"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    told = next(row for row in rows if row["type"] == "result")
    assert told["fits"] and told["chosen"] == "all" and told["device"]["name"] == "L4"
    assert told["peak"] == next(way["total"] for way in told["demands"] if way["keep"] == "all")
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    assert main([*words, "--memory", "0.61"]) == 4
    shown = " ".join(capfd.readouterr().out.split())
    assert "It does not fit" in shown and "Try --quant_bits 4" in shown
    assert not list(tmp_path.glob("runs*")), "a plan leaves no run behind"


def test_a_plan_without_rows(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "sft", "--model", "nano", "--max_length", "64", "--per_device_train_batch_size", "2"]
    assert main([*words, "--device", "L4"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "samples of 64 tokens are supposed" in shown and "at most 128 tokens" in shown
    assert "not known without rows or --max_steps" in shown and "Note: No rows were named" in shown


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["plan"], 2, "neither a recipe nor a model"),
        (["plan", "--model", "nano", "--dataset", "{chats}", "--device", "4080ti"], 2, "no device of this name"),
        (["plan", "--model", "nano", "--dataset", "{chats}", "--lora_rnk", "3"], 2, "Did you mean --lora_rank"),
        (["plan", "sft", "--model", "./nowhere", "--dataset", "{chats}"], 2, "no such model folder"),
        (["plan", "sft", "--model", "nano", "--dataset", "nowhere.jsonl"], 3, "no such file"),
        (["plan", "sft", "--model", "nano"], 2, "or --max_length and --per_device_train_batch_size"),
        (["sft", "--model", "nano", "--max_length", "64"], 2, "no training data was named"),
        (["compare"], 2, "no runs were named"),
        (["compare", "./nowhere"], 2, "nothing is there"),
        (["compare", "{folder}"], 2, "neither a run nor results"),
        (["compare", "a", "--bye", "loss"], 2, "Did you mean --by"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_one_sentence(
    words: list[str], code: int, told: str, chats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main([word.format(chats=chats, folder=tmp_path / "empty") for word in words]) == code
    assert told in " ".join(capfd.readouterr().err.split())


def test_a_broken_run_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 1\n")
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "b" / "env.json").write_text("{")
    assert main(["compare", str(tmp_path)]) == 2
    assert "b/env.json: cannot be read" in " ".join(capfd.readouterr().err.split())
    (tmp_path / "b" / "env.json").unlink()
    assert main(["compare", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 0
    assert "Runs, best first by loss" in capfd.readouterr().out
    assert (tmp_path / "out" / "comparison.html").exists()
