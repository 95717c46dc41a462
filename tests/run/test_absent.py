"""A dry run tells what its recipe names and this machine does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.cli.app import main
from luthier.run.absent import absent
from luthier.run.config import RunConfig


def config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"model": {"path": "nano"}, **settings})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": {"path": "./gone"}}, "--model ./gone: there is no such folder"),
        ({"model": {"path": "nano", "adapters": ["runs/gone"]}}, "--adapters runs/gone: there is no such folder"),
        ({"data": {"datasets": ["gone.jsonl#5"]}}, "--dataset gone.jsonl#5: there is no such file"),
        ({"data": {"validation": ["./gone"]}}, "--val_dataset ./gone: there is no such file"),
        ({"data": {"replay": ["gone.csv"]}}, "--replay_dataset gone.csv: there is no such file"),
        ({"retain": {"general": ["gone.csv"]}}, "--general_dataset gone.csv: there is no such file"),
        ({"objective": {"type": "distill", "teacher": "/gone"}}, "--teacher /gone: there is no such folder"),
        ({"save": {"resume": "runs/gone"}}, "--resume_from_checkpoint runs/gone: there is no such run"),
        ({"stages": {"one": {"data": {"datasets": ["gone.csv"]}}}}, "--dataset gone.csv: there is no such file"),
    ],
)
def test_what_is_not_here_is_told(settings: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert absent(config(**settings)) == [f"{told} on this machine"]


def test_what_is_here_or_may_be_on_a_hub_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "adapter").mkdir()
    names = ["rows.jsonl", "rows.jsonl#5", "owner/set-1.5", "hf::owner/set.json", "owner/set:part#5"]
    assert absent(config(data={"datasets": names}, save={"resume": "true"})) == []
    assert absent(config(model={"path": "owner/model-2.5-7B", "adapters": ["adapter"]})) == []


def test_a_dry_run_tells_it_and_prints_the_recipe_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = ["sft", "--model", "nano", "--dataset", "d.jsonl", "--adapters", "./gone", "--dry_run"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "warning: --adapters ./gone: there is no such folder on this machine" in said.err
    assert "warning: --dataset d.jsonl" in said.err and "./gone" in said.out
