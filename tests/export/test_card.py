"""Model cards tell what is known, and nothing that only this machine should know."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from luthier.export.card import CardFacts, card, public_name, without_paths


def test_head_is_what_hubs_read() -> None:
    text = card(CardFacts("me/violin", base="Qwen/Qwen2.5-7B", kind="an adapter", recipe={"rank": 8}))
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == "Qwen/Qwen2.5-7B" and head["library_name"] == "peft"
    assert "| rank | 8 |" in text and "## Limits" in text and "## Scores" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rows of /home/me/data/rows.jsonl#9 were", "rows of rows.jsonl#9 were"),
        ("in ~/models/base.", "in base."),
        ("see https://hub.example/a/b/c", "see https://hub.example/a/b/c"),
        ("loss and/or Qwen/Qwen2 at 1/2/3", "loss and/or Qwen/Qwen2 at 1/2/3"),
    ],
)
def test_paths_are_cut_down(text: str, expected: str) -> None:
    assert without_paths(text) == expected


def test_public_names(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    assert public_name(str(tmp_path / "rows.jsonl#50")) == "rows.jsonl#50"
    assert public_name("ms::AI-ModelScope/alpaca-gpt4-data-zh#500") == "AI-ModelScope/alpaca-gpt4-data-zh#500"
    assert public_name("../models/base") == "base" and public_name("nano") == "nano"
