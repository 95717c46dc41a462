"""The help page of a command, generated from its config tree; fast, because nothing heavy is imported."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.base.config import Config, config_classes
from luthier.base.leaves import Leaf, leaves
from luthier.run.familiar import FAMILIAR
from luthier.run.names import names_of
from luthier.run.translate import Ignored, Refused

_INDENT = 26


@dataclass(frozen=True)
class Command:
    """What the help page says besides the settings."""

    name: str
    usage: str
    about: str
    examples: tuple[str, ...]
    switches: Mapping[str, str]
    """Flags of the command itself, which are not settings."""


def page(command: Command, kind: type[Config]) -> str:
    """The complete help of one command, grouped as the settings are."""
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    settings = leaves(kind)
    blocks = [f"usage: luthier {command.name} {command.usage}", textwrap.fill(command.about, width)]
    blocks.append("\n".join(["Examples:", *(f"  {example}" for example in command.examples)]))
    blocks.append("\n".join(["Command:", *(_entry(flag, text, width) for flag, text in command.switches.items())]))
    for title, group in _groups(kind, settings).items():
        blocks.append("\n".join([title, *(_setting(leaf, width, settings) for leaf in group)]))
    blocks.append(
        "Flags may be written with dashes or underscores, as --name value or --name=value; --no_name switches off;\n"
        "null unsets; the full path of a setting always works."
    )
    if "model.path" in settings:
        blocks.append(_listed("Accepted from other tools and changing nothing:", Ignored, width))
        blocks.append(_listed("Not possible here; the error says what is:", Refused, width))
    return "\n\n".join(blocks) + "\n"


def _groups(kind: type[Config], settings: Mapping[str, Leaf]) -> dict[str, list[Leaf]]:
    """The settings under one title for each group; settings at the top of the tree come last."""
    groups: dict[str, list[Leaf]] = {}
    loose: list[Leaf] = []
    for name, info in kind.model_fields.items():
        members = [leaf for leaf in settings.values() if leaf.path.startswith(name + ".")]
        if config_classes(info.annotation):
            groups[f"{name}: {info.description or ''}"] = members
        else:
            loose.append(settings[name])
    if loose:
        groups["general:" if groups else "Settings:"] = loose
    return groups


def _setting(leaf: Leaf, width: int, settings: Mapping[str, Leaf]) -> str:
    (shown, *same), other = names_of(leaf, settings)
    facts = [f"[{_written(leaf.default)}]"] if leaf.default not in (None, (), {}, "") else []
    if leaf.choices:
        facts.append("{" + ", ".join(leaf.choices) + "}")
    if leaf.owners and leaf.name != "type":
        facts.append(f"({' and '.join(leaf.owners)} only)")
    text = " ".join([leaf.description, *facts])
    also = ["also " + ", ".join(same)] if same else []
    also += ["as elsewhere: " + ", ".join(other)] if other else []
    return _entry(f"{shown}{_value(leaf)}", text, width, "; ".join(also))


def _value(leaf: Leaf) -> str:
    if leaf.is_bool:
        return ""
    word = "JSON" if leaf.is_dict else "N" if "number" in leaf.expected else "WORD" if leaf.choices else "TEXT"
    return f" {word} [{word} ...]" if leaf.is_many else f" {word}"


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def _entry(flag: str, text: str, width: int, also: str = "") -> str:
    """Flag on the left, text on the right; a long flag takes a line of its own."""
    lines = textwrap.wrap(text, width - _INDENT) + textwrap.wrap(also, width - _INDENT, break_on_hyphens=False)
    left = f"  {flag}"
    if len(left) > _INDENT - 2:
        return "\n".join([left, *(" " * _INDENT + line for line in lines)])
    first, *others = lines
    return "\n".join([left.ljust(_INDENT) + first, *(" " * _INDENT + line for line in others)])


def _listed(title: str, kind: type[Ignored] | type[Refused], width: int) -> str:
    names: Sequence[str] = [f"--{name}" for name, entry in FAMILIAR.items() if isinstance(entry, kind)]
    body = textwrap.fill(" ".join(names), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return f"{title}\n{body}"
