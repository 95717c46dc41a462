"""An index and a cache of its own for every test of the workshop."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    for name in ("LUTHIER_DEBUG", "RANK"):
        monkeypatch.delenv(name, raising=False)
