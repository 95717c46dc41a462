"""A recipe as it is written: its settings, and its steps, each checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from luthier.base.config import nearest, validate
from luthier.base.errors import ConfigError
from luthier.data.config import Sets
from luthier.data.sources import files_of, parse_spec
from luthier.prepare import verbs
from luthier.prepare.config import ReadConfig, VerbConfig
from luthier.prepare.places import plain_files, read_by
from luthier.prepare.verb import Verb


class RecipeConfig(ReadConfig):
    """A recipe: where rows come from, where they go, and the verbs between."""

    inputs: Sets = ()
    """Data sets: [hf::|ms::]path-or-hub-id[:subset][#N]."""
    output: str | None = None
    """File to write: .jsonl or .parquet; or a folder."""
    report: str | None = None
    """JSON file for the reports of all steps; a page for people is written beside it, with the suffix .html."""
    steps: tuple[dict[str, dict[str, Any] | None], ...] = ()
    """The verbs in order, each with its settings: [{dedup: {near: true}}, {split: {ratio: [0.9, 0.1]}}]."""

    @field_validator("steps", mode="before")
    @classmethod
    def _bare_verbs(cls, steps: Any) -> Any:
        return [{step: None} if isinstance(step, str) else step for step in steps] if isinstance(steps, list) else steps

    @model_validator(mode="after")
    def _one_verb_a_step(self) -> RecipeConfig:
        for number, step in enumerate(self.steps, 1):
            if len(step) != 1:
                raise ValueError(f"step {number} must name one verb with its settings, like 'dedup: {{exact: true}}'")
        return self


@dataclass(frozen=True)
class Step:
    """One step, checked."""

    number: int
    verb: Verb
    config: VerbConfig
    only: tuple[str, ...]

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"step {self.number} ({self.verb.name})"


def checked(number: int, step: Mapping[str, Mapping[str, Any] | None]) -> Step:
    """A step of a recipe with its verb's settings.  Raises ConfigError.

    Args:
        number: from 1 on.
    """
    (name, given), *_ = step.items()
    settings = dict(given or {})
    known = verbs.names()
    if name not in known:
        hint = nearest(name, known)
        fix = f"Did you mean {hint!r}?" if hint else f"Verbs: {', '.join(known)}"
        raise ConfigError(f"there is no verb {name!r}", where=f"steps[{number - 1}]", fix=fix, code="unknown_command")
    only = settings.pop("only", ())
    verb = verbs.load(name)
    try:
        config = validate(verb.config, settings)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"steps[{number - 1}] {name}", code=error.code) from error
    return Step(number, verb, config, (only,) if isinstance(only, str) else tuple(only))


def names_behind(steps: Sequence[Step]) -> tuple[str, ...]:
    """The sets there are behind the last step; "" is one without a name.  Raises ConfigError."""
    names: tuple[str, ...] = ("",)
    for step in steps:
        where = f"steps[{step.number - 1}] {step.verb.name}"
        unknown = [name for name in step.only if name not in names]
        if unknown:
            there = ", ".join(name for name in names if name) or "one set without a name"
            raise ConfigError(f"only: there is no set {unknown[0]!r} here", where=where, fix=f"There is: {there}")
        parts = step.verb.parts(step.config) if step.verb.writes else ("",)
        if parts != ("",):
            if names != ("",):
                raise ConfigError("the rows are split already", where=where, fix="Split once")
            names = parts
    return names


def files_named(step: Step, recipe: RecipeConfig) -> list[Path]:
    """The files on this disk that a step reads besides its rows."""
    specs = [parse_spec(text, recipe.hub) for text in read_by(step.verb, step.config)]
    found = [path for spec in specs if spec.kind == "local" for path in files_of(spec)]
    return found + plain_files(step.verb, step.config)
