"""Folders are searched once for all pages, and seldom where that takes long."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from luthier.studio import house
from luthier.studio.house import open_house
from luthier.studio.roots import Roots


def test_a_search_is_believed_for_as_long_as_it_is_dear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "_FRESH", 0.0)
    studio, looked = open_house(Roots([str(tmp_path)])), list[float]()

    def models() -> list[Path]:
        looked.append(time.monotonic())
        time.sleep(0.05)
        return []

    monkeypatch.setattr(studio.roots, "models", models)
    for _ in range(3):
        assert studio.models() == []
    assert len(looked) == 1
    time.sleep(0.7)
    studio.models()
    assert len(looked) == 2
