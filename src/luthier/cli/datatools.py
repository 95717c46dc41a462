"""Models and endpoints for the verbs that need one: made here of a verb's settings, and handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from luthier.prepare.config import VerbConfig
from luthier.prepare.verb import Verb

MAKERS: dict[str, str] = {
    "ask": "luthier.cli.endpoints:ask",
    "loss": "luthier.cli.judges:loss",
    "embed": "luthier.cli.judges:embed",
    "choose": "luthier.cli.judges:choose",
}
"""For each tool that verbs ask for by name: "module:function" that makes it of the verb's settings."""


def tools_of(verb: Verb, config: VerbConfig) -> Mapping[str, Callable[..., Any]]:
    """The callables a verb asks for.

    Raises:
        ConfigError, ModelError, MissingExtra: as their makers.
    """
    made: dict[str, Callable[..., Any]] = {}
    for name in verb.tools:
        module, _, function = MAKERS[name].partition(":")
        made[name] = getattr(import_module(module), function)(config)
    return made
