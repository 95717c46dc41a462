"""The config tree's common root, and the way from YAML and overrides to one validated tree.

Each room keeps its own settings in its `config.py`; `run.config.RunConfig` puts them together.  A field's
description is its documentation, its `--help` line and its tooltip.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import pydantic
import yaml

from luthier.base.errors import ConfigError

Tree = dict[str, Any]
"""A config tree before validation: nested dicts of YAML values."""

C = TypeVar("C", bound="Config")

Named = Annotated[str, pydantic.Field(min_length=1)]
"""A path or a name. An empty word is a shell's variable that nobody has set, and would stand for the present folder."""


class Config(pydantic.BaseModel):
    """A frozen group of settings; unknown names are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def read_yaml(path: Path) -> Tree:
    """Read a recipe.  Only plain YAML values: tags that build Python objects are refused.

    Raises:
        ConfigError: the file cannot be read or is not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the recipe: {why}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not plain YAML: {' '.join(str(error).split())}", where=str(path)) from error
    if not isinstance(loaded, dict):
        raise ConfigError("a recipe must be a mapping of settings", where=str(path))
    return loaded


def to_yaml(config: Config) -> str:
    """The whole tree as YAML; `read_yaml` and `validate` give an equal tree back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def assign(tree: Tree, path: str, value: Any) -> None:
    """Set `tree["a"]["b"] = value` for path `a.b`, creating the levels between."""
    *parents, last = path.split(".")
    for key in parents:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            below = tree[key] = {}
        tree = below
    tree[last] = value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree as dotted paths."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`under` with the values of `over` laid on top, level by level.  A changed `type` drops its siblings below."""
    merged = dict(under)
    if "type" in over and "type" in under and over["type"] != under["type"]:
        return dict(over)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, if any is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def validate(kind: type[C], tree: Mapping[str, Any]) -> C:
    """Check a tree against a config class.

    Raises:
        ConfigError: naming every wrong setting by its dotted path, with the nearest known name for unknown ones.
    """
    try:
        return kind.model_validate(tree)
    except pydantic.ValidationError as error:
        lines = [_explain(kind, dict(problem)) for problem in error.errors()]
        raise ConfigError("; ".join(lines)) from error


def _explain(kind: type[Config], problem: Mapping[str, Any]) -> str:
    path, member = _dotted(kind, [str(part) for part in problem["loc"]])
    match problem["type"]:
        case "union_tag_invalid":
            expected, tag = problem["ctx"]["expected_tags"].replace("'", ""), problem["ctx"]["tag"]
            return f"{path}.type: expected one of {expected}, got {tag!r}"
        case "union_tag_not_found":
            return f"{path}: give its type too, as {path}.type"
        case "missing":
            return f"{path}: a value is needed"
        case "extra_forbidden":
            return _unknown(kind, path, member)
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{path or 'this'}: expected settings of its own (a mapping), got {problem['input']!r}"
        case "string_too_short":
            return f"{path}: expected text that is not empty"
        case "tuple_type" | "list_type":
            return f"{path}: expected a list, got {problem['input']!r}"
        case _:
            said = str(problem["msg"]).removeprefix("Value error, ")
            return f"{path}: {said}" if path else said


def _unknown(kind: type[Config], path: str, member: type[Config] | None) -> str:
    """What is wrong with a setting that its place does not have; `member` is the union's member at that place."""
    name = path.rpartition(".")[2]
    known = known_names(kind)
    if member is not None and name in known:
        has = [field for field in member.model_fields if field != "type"]
        told = f"its settings are {', '.join(has)}" if has else "it has none"
        return f"{path}: not a setting of {member.model_fields['type'].default!r}; {told}"
    hint = nearest(name, known - {name})
    return f"{path}: unknown setting" + (f" (did you mean {hint!r}?)" if hint else "")


def _dotted(kind: type[Config], location: list[str]) -> tuple[str, type[Config] | None]:
    """An error's place as a dotted path, without the union tags pydantic puts in; and the class of the last tag."""
    classes, path, chosen = [kind], list[str](), None
    for part in location:
        if len(classes) > 1:
            classes = [member for member in classes if member.model_fields["type"].default == part]
            chosen = classes[0] if classes else None
            continue
        path.append(part)
        field = classes[0].model_fields.get(part) if classes else None
        classes = config_classes(field.annotation) if field else []
    return ".".join(path), chosen


def known_names(kind: type[Config]) -> set[str]:
    """Every field name anywhere below a config class."""
    names: set[str] = set()
    for name, field in kind.model_fields.items():
        names.add(name)
        for below in config_classes(field.annotation):
            names |= known_names(below)
    return names


def config_classes(annotation: Any) -> list[type[Config]]:
    """The config classes named in a type annotation: one for a group, several for a discriminated union."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    found: list[type[Config]] = []
    if get_origin(annotation) in (dict, tuple, list):  # several of them are one setting, not a group of settings
        return found
    for argument in getattr(annotation, "__args__", ()):
        found += config_classes(argument)
    return found
