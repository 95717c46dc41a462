"""From settings to the fields of a form, and from what was typed to the words of a command.

The form knows nothing that the command line does not: it writes flags, and the command reads them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.base.config import Config
from luthier.base.leaves import Leaf, leaves
from luthier.base.secrets import SECRET_NAME
from luthier.run.names import names_of

Kind = Literal["choice", "switch", "number", "text", "list", "json"]
Values = Mapping[str, str]
"""What was typed, by path of the setting; what is missing or empty keeps its default."""

FIRST = (
    "model.path",
    "data.datasets",
    "objective.type",
    "method.type",
    "method.rank",
    "optim.learning_rate",
    "train.epochs",
    "train.max_steps",
    "train.micro_batch",
    "data.max_length",
    "data.split_ratio",
    "output_dir",
)
"""Settings of a training that people change before all others, in this order."""
_CALLED = {"objective.type": "task_type", "method.type": "train_type"}
"""Of several known names, the one that says most."""


@dataclass(frozen=True, slots=True)
class Field:
    """One setting as a line of a form."""

    path: str
    flag: str
    """Its best known name, without dashes."""
    known_as: tuple[str, ...]
    """All its names, for searching."""
    help: str
    kind: Kind
    choices: tuple[str, ...] = ()
    """The words that it takes, where they are listed."""
    default: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False
    owners: tuple[str, ...] = ()
    """Types of its group that have it; empty: all."""

    @property
    def group(self) -> str:
        """The first part of its path; empty for settings at the top."""
        return self.path.rpartition(".")[0].partition(".")[0]


def fields(*kinds: type[Config]) -> dict[str, Field]:
    """The settings of config classes by path; secrets are left out, they belong in the environment."""
    settings = {path: leaf for kind in kinds for path, leaf in leaves(kind).items()}
    about = {name: text for kind in kinds for name, text in titles(kind).items()}
    return {path: _field(leaf, settings, about) for path, leaf in settings.items() if not SECRET_NAME.search(path)}


def titles(kind: type[Config]) -> dict[str, str]:
    """What the groups of a config class are about."""
    return {name: " ".join((info.description or "").split()) for name, info in kind.model_fields.items()}


def visible(known: Mapping[str, Field], values: Values) -> list[Field]:
    """The fields that mean something with the types chosen."""
    chosen = {path: values.get(path) or field.default for path, field in known.items() if path.endswith(".type")}
    return [field for field in known.values() if not field.owners or chosen.get(f"{field.group}.type") in field.owners]


def matching(found: Sequence[Field], text: str) -> list[Field]:
    """The fields in whose names or help all words of `text` occur."""
    wanted = text.lower().replace("-", "_").split()
    return [field for field in found if all(word in _searched(field) for word in wanted)]


def fault(field: Field, text: str) -> str | None:
    """What is wrong with what was typed, in a few English words; None when it can be used."""
    if not text.strip():
        return None
    if field.kind == "json":
        return None if _is_object(text) else "must be a JSON object"
    if field.kind == "list":
        return None if _split(text) is not None else "a quotation mark is open"
    if field.kind != "number":
        return None
    try:
        value = int(text) if field.whole else float(text)
    except ValueError:
        return "must be a whole number" if field.whole else "must be a number"
    for bound, holds, said in (
        (field.least, lambda bound: value >= bound, "at least"),
        (field.most, lambda bound: value <= bound, "at most"),
        (field.above, lambda bound: value > bound, "above"),
        (field.below, lambda bound: value < bound, "below"),
    ):
        if bound is not None and not holds(bound):
            return f"must be {said} {bound:g}"
    return None


def words(known: Mapping[str, Field], values: Values) -> list[str]:
    """The flags that say what was typed; fields that have no meaning with the types chosen are left out."""
    found: list[str] = []
    for field in visible(known, values):
        text = values.get(field.path, "").strip()
        if not text or text == field.default:
            continue
        several = _split(text) if field.kind == "list" else None
        found += [f"--{field.flag}", *(several if several is not None else [text])]
    return found


def line(command: Sequence[str]) -> str:
    """A command of luthier as a person types it."""
    return shlex.join(["luthier", *command])


def _field(leaf: Leaf, settings: Mapping[str, Leaf], about: Mapping[str, str]) -> Field:
    same, other = names_of(leaf, settings)
    called = _CALLED.get(leaf.path, same[0].removeprefix("--"))
    bounds = {
        name: next((float(getattr(rule, rule_name)) for rule in leaf.constraints if hasattr(rule, rule_name)), None)
        for name, rule_name in (("least", "ge"), ("most", "le"), ("above", "gt"), ("below", "lt"))
    }
    kind = _kind(leaf)
    return Field(
        leaf.path,
        called,
        tuple(name.removeprefix("--") for name in (*same, *other)),
        leaf.description or about.get(leaf.path.partition(".")[0], ""),  # the type of a union has no words of its own
        kind,
        ("true", "false") if kind == "switch" else leaf.choices,
        _written(leaf.default),
        whole="whole" in leaf.expected,
        owners=leaf.owners if leaf.name != "type" else (),
        **(bounds if kind == "number" else {}),
    )


def _kind(leaf: Leaf) -> Kind:
    if leaf.is_dict:
        return "json"
    if leaf.is_many:
        return "list"
    if leaf.is_bool:
        return "switch"
    if leaf.choices and leaf.expected.startswith("one of"):
        return "choice"
    return "number" if "number" in leaf.expected else "text"


def _written(value: Any) -> str:
    if value is None or value == () or value == {}:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return shlex.join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType]
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _searched(field: Field) -> str:
    return f"{field.path} {' '.join(field.known_as)} {field.help}".lower()


def _split(text: str) -> list[str] | None:
    try:
        return shlex.split(text)
    except ValueError:
        return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
