"""Pages read what lies below the folders that the user gave, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.base.errors import ConfigError
from luthier.studio.roots import Roots


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    inside, models = tmp_path / "inside", tmp_path / "models"
    for folder in (inside / "runs" / "v1-20260101-120000" / "checkpoints", inside / "deep" / "er", models / "base"):
        folder.mkdir(parents=True)
    (inside / "rows.jsonl").write_text("{}\n")
    (inside / ".hidden").write_text("x")
    (models / "base" / "config.json").write_text("{}")
    (tmp_path / "secret.txt").write_text("x")
    (inside / "way-out").symlink_to(tmp_path / "secret.txt")
    return Roots([str(inside), str(models)])


def test_names_inside_are_found(roots: Roots) -> None:
    assert roots.find("rows.jsonl") == roots.first / "rows.jsonl"
    assert roots.find("deep/../rows.jsonl") == roots.first / "rows.jsonl"
    assert roots.find(str(roots.folders[1] / "base")).name == "base"
    assert roots.name(roots.first / "deep" / "er") == "deep/er"
    assert roots.name(roots.first / "--flag") == "./--flag"
    assert roots.name(roots.folders[1] / "base") == str(roots.folders[1] / "base")


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "way-out", "deep/../../secret.txt", "~", "..", "/"])
def test_ways_out_are_closed(roots: Roots, name: str) -> None:
    with pytest.raises(ConfigError, match="outside"):
        roots.find(name)
    with pytest.raises(ConfigError, match="outside"):
        roots.refuse_outside(["sft", "--dataset", f"{name}#50"])


def test_words_that_are_no_paths_to_the_outside_pass(roots: Roots) -> None:
    roots.refuse_outside(["--dataset", "hf::me/set:sub#50", "rows.jsonl", "poet=deep", "--learning_rate", "1e-4", ""])
    roots.refuse_outside(['{"a": "b"}', "你是谁", "x" * 5000, "not-there-yet"])
    with pytest.raises(ConfigError, match="outside"):
        roots.refuse_outside(["--adapters", "poet=/etc"])


def test_a_listing_shows_folders_first_and_nothing_hidden_or_outside(roots: Roots) -> None:
    assert [entry.path.name for entry in roots.listing(roots.first)] == ["deep", "runs", "rows.jsonl"]


def test_runs_and_models_are_found(roots: Roots) -> None:
    assert [path.name for path in roots.runs()] == ["v1-20260101-120000"]
    assert [path.name for path in roots.models()] == ["base"]


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Roots([str(tmp_path / "none")])
