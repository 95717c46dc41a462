"""Benchmarks are not run here, and must not lose what they import."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
OURS = {path.stem for path in FOLDER.glob("*.py")} | {"luthier"}


def imports(path: Path) -> list[tuple[str, str]]:
    """Module and name of what a file takes from luthier or from its neighbours."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    taken = [(node.module or "", alias.name) for node in nodes for alias in node.names]
    return [(module, name) for module, name in taken if module.partition(".")[0] in OURS]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_finds_what_it_imports(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    for module, name in imports(path):
        if module == "luthier.model.kernels" and find_spec("triton") is None:
            continue
        assert hasattr(import_module(module), name) or find_spec(f"{module}.{name}"), f"{module}.{name}"
