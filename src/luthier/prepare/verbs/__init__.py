"""The verbs of the workshop, one module each.  A module with a VERB is a verb; nothing has to be registered."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.prepare.verb import Verb


def names() -> list[str]:
    """Every verb, by the name of its module."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def load(name: str) -> Verb:
    """The verb of a module.

    Raises:
        ModuleNotFoundError: there is none of this name.
    """
    return importlib.import_module(f"{__name__}.{name}").VERB


def about(name: str) -> str:
    """The first line of a verb's module, without importing it: lists of verbs must be fast."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or name).splitlines()[0]
