"""A command's own words among the flags of settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.base.errors import ConfigError
from luthier.cli.own import take

TAKES = {"config": "a file", "space": "a file"}


def test_own_words_are_told_from_settings() -> None:
    own = take(["r.yaml", "--dry-run", "--seed", "3", "--space=s.yaml", "-h"], TAKES, ("dry_run", "help"))
    assert own.recipe == Path("r.yaml") and own.values["space"] == "s.yaml"
    assert own.switches == {"dry_run", "help"} and own.rest == ["--seed", "3"]


def test_settings_stay_as_they_are() -> None:
    words = ["--learning_rate=1e-5", "--spaces", "--dry_run=true", "--train.max-steps", "3"]
    own = take(words, TAKES, ("dry_run",))
    assert own.rest == words and own.recipe is None and not own.switches


def test_the_first_word_is_a_recipe_only_where_one_may_stand() -> None:
    assert take(["x", "--config", "r.yaml"], TAKES, (), recipe_first=False).rest == ["x"]
    with pytest.raises(ConfigError, match="given twice"):
        take(["x", "--config", "r.yaml"], TAKES, ())


def test_a_recipe_may_follow_a_switch_and_other_words_may_not() -> None:
    assert take(["--dry_run", "r.yaml", "--seed", "3"], TAKES, ("dry_run",)).recipe == Path("r.yaml")
    with pytest.raises(ConfigError, match="expected no value, got 'true'"):
        take(["--data", "a", "--dry_run", "true"], TAKES, ("dry_run",), recipe_first=False)
    assert take(["--dry_run", "x", "-h"], TAKES, ("dry_run", "help"), recipe_first=False).switches


@pytest.mark.parametrize("words", [["--config"], ["--config="], ["--space", "--dry_run"]])
def test_a_missing_value_is_told(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected a file, got nothing"):
        take(words, TAKES, ("dry_run",))
