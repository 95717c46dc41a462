"""What a verb reads and where it writes, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from luthier.base.errors import ConfigError
from luthier.data.sources import files_of, parse_spec
from luthier.prepare.config import VerbConfig
from luthier.prepare.verb import Verb
from luthier.prepare.write import part_paths, refuse_overwriting, target


@dataclass(frozen=True)
class Places:
    """Where things go; what is None is not written."""

    outputs: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """By the name of the part."""
    report: Path | None = None
    removed: Path | None = None
    rejected: Path | None = None

    @property
    def page(self) -> Path | None:
        """The page for people, beside the report."""
        return self.report.with_suffix(".html") if self.report else None


def places(
    verb: Verb,
    config: VerbConfig,
    inputs: Sequence[str],
    *,
    output: str | None = None,
    report: str | None = None,
    removed: str | None = None,
    hub: Literal["hf", "ms"] = "hf",
) -> Places:
    """Check where a verb is to write, before anything is read.

    Raises:
        ConfigError: a name that cannot be written, or that would overwrite an input.
        DataError: an input that is not there.
    """
    if output and not verb.writes:
        raise ConfigError(f"{verb.name} writes a report, no rows", where="--output", fix="Give --report FILE.json")
    outputs = part_paths(output, verb.parts(config)) if output else {}
    made = Places(
        outputs=outputs,
        report=target(report, "--report", (".json",)) if report else None,
        removed=target(removed, "--removed", (".jsonl",)) if removed else None,
        rejected=_rejected_path(output, report),
    )
    named = [*outputs.values(), made.report, made.page, made.removed, made.rejected]
    refuse_overwriting(_files(verb, config, inputs, hub), [path for path in named if path])
    return made


def _rejected_path(output: str | None, report: str | None) -> Path | None:
    beside = output or report
    if beside is None:
        return None
    path = Path(beside).expanduser()
    if path.is_dir() or not path.suffix:
        return path / "rejected.jsonl"
    return path.with_suffix(".rejected.jsonl")


def _files(verb: Verb, config: VerbConfig, inputs: Sequence[str], hub: Literal["hf", "ms"]) -> list[Path]:
    """Every local file that is read."""
    found: list[Path] = []
    for text in (*inputs, *read_by(verb, config)):
        spec = parse_spec(text, hub)
        if spec.kind == "local":
            found += files_of(spec)
    return found + plain_files(verb, config)


def read_by(verb: Verb, config: VerbConfig) -> list[str]:
    """The further files and data sets that a verb's settings name."""
    return _named(verb.reads, config)


def plain_files(verb: Verb, config: VerbConfig) -> list[Path]:
    """The plain files that a verb's settings name, those that are there."""
    paths = [Path(name).expanduser() for name in _named(verb.files, config)]
    return [path for path in paths if path.is_file()]


def _named(settings: Sequence[str], config: VerbConfig) -> list[str]:
    found: list[str] = []
    for name in settings:
        value = getattr(config, name)
        found += [value] if isinstance(value, str) else list(value or ())
    return found
