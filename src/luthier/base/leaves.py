"""The settings of a config tree, one by one: what flags set and help lists."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from luthier.base.config import Config, config_classes


@dataclass(frozen=True)
class Leaf:
    """One setting: the end of a dotted path."""

    path: str
    annotation: Any
    default: Any
    description: str
    constraints: tuple[Any, ...] = ()
    owners: tuple[str, ...] = ()
    """Members of the union that have the setting, by their `type`; empty outside unions."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words, when they are listed."""
        return tuple(word for kind in self._kinds() if get_origin(kind) is Literal for word in get_args(kind))

    @property
    def is_bool(self) -> bool:
        """Whether the flag is a switch."""
        return self._parts() == (bool,)

    @property
    def is_dict(self) -> bool:
        """Whether the value is a mapping."""
        return get_origin(self._parts()[0]) is dict

    @property
    def is_many(self) -> bool:
        """Whether the flag takes several words."""
        return any(get_origin(part) is tuple for part in self._parts())

    @property
    def is_one(self) -> bool:
        """Whether a single word is a value of its own, not a list of one."""
        return any(get_origin(part) is not tuple for part in self._parts())

    @property
    def optional(self) -> bool:
        """Whether the setting can be unset."""
        return type(None) in get_args(self.annotation)

    @property
    def expected(self) -> str:
        """The kind of value, for help and errors."""
        if self.choices:
            return ("any of " if self.is_many else "one of ") + ", ".join(self.choices)
        if self.is_bool:
            return "true or false"
        if self.is_dict:
            return "a JSON object"
        words = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}
        one, several = words.get(self._kinds()[0], ("text", "texts"))
        return several if self.is_many and not self.is_one else one

    def _parts(self) -> tuple[Any, ...]:
        """The alternatives of the annotation, without None."""
        union = get_origin(self.annotation) in (Union, types.UnionType)
        parts = get_args(self.annotation) if union else (self.annotation,)
        return tuple(part for part in parts if part is not type(None))

    def _kinds(self) -> list[Any]:
        """The alternatives, each list replaced by what it lists."""
        return [get_args(part)[0] if get_origin(part) is tuple else part for part in self._parts()]


def leaves(kind: type[Config], prefix: str = "", owner: str | None = None) -> dict[str, Leaf]:
    """Every setting below a config class, by dotted path, in order of definition."""
    found: dict[str, Leaf] = {}
    for name, info in kind.model_fields.items():
        path = prefix + name
        classes = config_classes(info.annotation)
        for below in classes:
            member = str(below.model_fields["type"].default) if len(classes) > 1 else None
            for leaf in leaves(below, path + ".", member).values():
                found[leaf.path] = _join(found[leaf.path], leaf) if leaf.path in found else leaf
        if not classes:
            default = info.get_default(call_default_factory=True)
            about = " ".join((info.description or "").split())
            found[path] = Leaf(path, info.annotation, default, about, tuple(info.metadata), (owner,) if owner else ())
    for name, info in kind.model_fields.items():  # a union's own default says which member a run has
        chosen = found.get(f"{prefix}{name}.type")
        if chosen is not None and chosen.owners:
            found[chosen.path] = _replace_default(chosen, info.default.type)
    return found


def _join(one: Leaf, other: Leaf) -> Leaf:
    """One setting of several union members; where words are listed, it takes those of all of them."""
    annotation = one.annotation
    if one.choices and other.choices and one.annotation != other.annotation:
        words: Any = Literal[(*one.choices, *other.choices)]
        annotation = words | None if one.optional or other.optional else words
    return Leaf(one.path, annotation, one.default, one.description, one.constraints, one.owners + other.owners)


def _replace_default(leaf: Leaf, default: Any) -> Leaf:
    return Leaf(leaf.path, leaf.annotation, default, leaf.description, leaf.constraints, leaf.owners)
