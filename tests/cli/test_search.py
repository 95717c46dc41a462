"""`luthier search`, from its words to what lies on the disk, with real trainings of a tiny model."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from processes import Job, fork

from luthier.base.errors import ConfigError
from luthier.base.leaves import leaves
from luthier.base.signals import tied
from luthier.cli.app import main
from luthier.cli.search import read_dimension, read_space
from luthier.run.config import RunConfig
from luthier.run.search import trial
from luthier.run.search.space import Choices, Range

LOADED = (optuna,)
LEAVES = leaves(RunConfig)


class Forked:
    """In place of `subprocess.Popen`: the same command in a fork of a process that has loaded everything."""

    def __init__(self, words: list[str], **_: Any):
        tie = tied()
        assert words[: len(tie)] == tie
        words = words[len(tie) :]
        assert words[:3] == [sys.executable, "-m", "luthier"]
        self.pid = fork(words[3:], Path(words[4]).parent / "output.jsonl").pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def quickly() -> None:
    trial.Popen = Forked  # type: ignore[misc,assignment]


def words(job: Job, *more: object, **flags: Any) -> list[str]:
    held = {"split_dataset_ratio": 0.2, "eval_steps": 2, "learning_rate": None, "max_steps": 6}
    return [*job.argv("search", **{**held, **flags}), *map(str, more)]


def searched(job: Job, *more: object, expect: int = 0, **flags: Any) -> str:
    child = job.begin(words(job, *more, **flags), quickly)
    code = child.wait()
    assert code == expect, child.said()
    return child.said()


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "search.json").read_text())


RATES = ("--space.learning_rate", "log", "1e-4", "1e-1", "--space.lora_rank", "2", "4", "8")


def test_three_trials_and_the_recipe_of_the_best(job: Job) -> None:
    said = searched(job, *RATES, "--trials", 3, "--pruning", "off")
    found = told(job.output_dir)
    assert [each["state"] for each in found["trials"]] == ["complete"] * 3
    assert found["best"]["value"] == min(each["value"] for each in found["trials"])
    best = yaml.safe_load((job.output_dir / "best.yaml").read_text())
    assert best["method"]["rank"] == found["best"]["settings"]["method.rank"]
    assert best["optim"]["learning_rate"] == found["best"]["settings"]["optim.learning_rate"]
    assert best["save"]["total_limit"] == 100
    assert f"luthier train {job.output_dir}/best.yaml" in said
    assert "luthier infer --adapters" in said
    job.call("train", job.output_dir / "best.yaml")
    (again,) = (job.output_dir / "best").glob("v1-*")
    rows = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval_loss"] for row in rows if row.get("best")][-1] == found["best"]["value"]


def test_an_interrupted_search_ends_where_the_whole_one_does(job: Job, tmp_path: Path) -> None:
    searched(job, *RATES, "--trials", 3, output_dir=tmp_path / "whole")
    cut = tmp_path / "cut"
    child = job.begin(words(job, *RATES, "--trials", 3, output_dir=cut), quickly)
    child.wait_until(lambda: any("total_steps" in f.read_text() for f in cut.glob("trials/0002/v1-*/metrics.jsonl")))
    child.kill(signal.SIGINT)
    assert child.wait() == 75, child.said()
    assert "--resume" in child.said()
    assert [each["state"] for each in told(cut)["trials"]] == ["complete", "unfinished"]
    again = job.begin(["search", "--resume", str(cut)], quickly)
    assert again.wait() == 0, again.said()
    assert "Trial 2 goes on" in again.said() and "Trial 1" not in again.said()
    whole = told(tmp_path / "whole")
    for name in ("value", "state", "settings", "steps"):
        assert [each[name] for each in told(cut)["trials"]] == [each[name] for each in whole["trials"]]
    assert len(list(cut.glob("trials/0002/v*"))) == 1  # the same run went on


def test_the_same_command_goes_on_and_another_search_is_refused(job: Job) -> None:
    searched(job, *RATES, "--trials", 1)
    first = told(job.output_dir)["trials"][0]
    said = searched(job, *RATES, "--trials", 2)
    assert "Going on with" in said
    assert told(job.output_dir)["trials"][0] == first
    said = searched(job, *RATES, "--trials", 2, expect=2, max_steps=4)
    assert "another search lies here" in said and "train.max_steps: 6 -> 4" in " ".join(said.split())
    assert len(told(job.output_dir)["trials"]) == 2


def test_a_trial_that_is_refused_is_counted(job: Job) -> None:
    space = json.dumps({"method.target": ["no_such_layer", "all-linear", ["q_proj", "v_proj"]]})
    searched(job, "--space", space, "--sampler", "grid", "--metric", "eval_token_accuracy")
    found = told(job.output_dir)
    assert sorted(each["state"] for each in found["trials"]) == ["complete", "complete", "failed"]
    failed = next(each for each in found["trials"] if each["state"] == "failed")
    assert failed["settings"] == {"method.target": "no_such_layer"} and "no_such_layer" in failed["fault"]
    assert found["direction"] == "maximize"
    assert found["best"]["value"] == max(each["value"] for each in found["trials"] if each["value"] is not None)


def test_a_metric_that_is_never_reported_ends_it_before_a_step(job: Job) -> None:
    said = searched(job, *RATES, "--metric", "eval_accuracy", expect=2)
    assert "there is no metric 'accuracy'" in said and "token_accuracy" in said
    assert not list(job.output_dir.glob("trials/*/v*/checkpoints/step-*"))
    searched(job, *RATES, "--trials", 1)  # nothing is in the way of the right one


def test_json_tells_programs_everything(job: Job) -> None:
    rows = [json.loads(line) for line in searched(job, *RATES, "--trials", 1, "--json").splitlines()]
    trials = [row for row in rows if row["type"] == "trial"]
    assert trials[0]["state"] == "complete" and set(trials[0]["settings"]) == {"optim.learning_rate", "method.rank"}
    assert rows[-1]["type"] == "result" and rows[-1]["recipe"] == str(job.output_dir / "best.yaml")


@pytest.mark.slow
def test_a_trial_is_a_process_of_its_own(job: Job) -> None:
    """Without the stand-in for starting processes."""
    child = job.begin(words(job, *RATES, "--trials", 1))
    assert child.wait(timeout=240) == 0, child.said()
    assert told(job.output_dir)["trials"][0]["state"] == "complete"


WRONG: dict[str, tuple[list[str], str]] = {
    "no space": ([], "nothing was named that is to be tried"),
    "unknown setting": (["--space.lora_ronk", "2", "4"], "--space.lora_rank"),
    "ambiguous setting": (["--space.type", "a", "b"], "several settings"),
    "one choice": (["--space.lora_rank", "[8]"], "nothing to choose"),
    "no choice": (["--space", '{"lora_rank": []}'], "nothing to choose"),
    "a choice twice": (["--space.lora_rank", "8", "8"], "twice"),
    "a setting twice": (["--space.lora_rank", "4", "8", "--space.method.rank", "2", "4"], "twice"),
    "a value of the wrong kind": (["--space.lora_rank", "4", "many"], "a whole number"),
    "a value out of bounds": (["--space.lora_rank", "0", "4"], "greater than or equal to 1"),
    "an end out of bounds": (["--space.optim.beta1", "linear", "0.5", "1.5"], "less than 1"),
    "a range upside down": (["--space.learning_rate", "log", "1e-3", "1e-5"], "LOW below HIGH"),
    "a logarithm of nothing": (["--space.learning_rate", "log", "0", "1e-3"], "above 0"),
    "a range of words": (["--space.optim.schedule", "linear", "1", "2"], "one of linear, cosine"),
    "a range without an end": (["--space.learning_rate", "log", "1e-3"], "log LOW HIGH"),
    "a step between whole numbers": (["--space.lora_rank", "linear", "2", "8", "step", "0.5"], "whole number"),
    "an unknown metric": ([*RATES, "--metric", "eval_banana"], "--direction"),
    "an unknown flag": ([*RATES, "--trails", "3"], "--trials"),
    "no trials": ([*RATES, "--trials", "0"], "--trials"),
    "a grid without end": ([*RATES, "--sampler", "grid"], "counted"),
    "no file": (["--space", "nowhere.yaml"], "nowhere.yaml"),
    "nothing to go on with": (["--resume", "nowhere"], "no search to go on with"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words_are_refused_before_anything_begins(
    case: str, job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more, message = WRONG[case]
    assert main(words(job, *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not job.output_dir.exists()


def test_without_validation_data_there_is_nothing_to_search_by(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(job, *RATES, split_dataset_ratio=None)) == 2
    assert "--split_dataset_ratio" in " ".join(capsys.readouterr().err.split())


def test_a_folder_with_something_else_is_left_alone(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.output_dir.mkdir()
    (job.output_dir / "thesis.txt").write_text("mine")
    assert main(words(job, *RATES)) == 2
    assert "something else" in capsys.readouterr().err
    assert [path.name for path in job.output_dir.iterdir()] == ["thesis.txt"]


def test_without_optuna_the_extra_is_named(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(words(job, *RATES)) == 2
    said = capsys.readouterr().err
    assert "luthier[search]" in said and len(said.splitlines()) == 1


def test_a_recipe_may_hold_its_search(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(job, *RATES, "--dry_run")) == 0
    recipe = job.folder / "recipe.yaml"
    recipe.write_text(capsys.readouterr().out)
    assert main(["search", str(recipe), "--trials", "5", "--space.lora_rank", "2", "4", "--dry_run"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["search"]["trials"] == 5
    assert len(tree["search"]["space"]) == 2
    assert main(["train", str(recipe)]) == 2
    assert "luthier search" in capsys.readouterr().err


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "-h"]) == 0
    page = capsys.readouterr().out
    for flag in ("--space FILE", "--resume DIR", "--trials N", "--sampler WORD", "--learning_rate N"):
        assert flag in page


READ: dict[str, tuple[str, Any, Any]] = {
    "text": ("optim.learning_rate", "log 1e-5 1e-3", Range("optim.learning_rate", 1e-5, 1e-3, True, False)),
    "words": ("optim.learning_rate", ["log", "1e-5", 0.001], Range("optim.learning_rate", 1e-5, 1e-3, True, False)),
    "whole": ("method.rank", "log 2 64", Range("method.rank", 2, 64, True, True)),
    "step": ("train.accumulation", "linear 4 32 step 4", Range("train.accumulation", 4, 32, False, True, 4)),
    "choices": ("method.rank", [4, "8"], Choices("method.rank", (4, 8))),
    "unset": ("optim.learning_rate", [None, 0.1], Choices("optim.learning_rate", (None, 0.1))),
    "switch": ("method.dora", [True, False], Choices("method.dora", (True, False))),
    "words that name no range": (
        "optim.schedule",
        ["linear", "cosine"],
        Choices("optim.schedule", ("linear", "cosine")),
    ),
    "lists": (
        "method.target",
        ["all-linear", ["q_proj", "v_proj"]],
        Choices("method.target", ("all-linear", ["q_proj", "v_proj"])),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_the_notation_of_a_space(case: str) -> None:
    path, value, expected = READ[case]
    assert read_dimension("--space.x", LEAVES[path], value) == expected


def test_a_space_may_be_nested_and_names_may_be_familiar() -> None:
    nested = read_space({"optim": {"learning_rate": "log 1e-5 1e-3"}, "lora_rank": [4, 8], "batch-size": [1, 2]})
    assert [each.path for each in nested] == ["optim.learning_rate", "method.rank", "train.micro_batch"]
    with pytest.raises(ConfigError, match=r"--space\.lora_rank"):
        read_space({"lora_rnk": [4, 8]})
