"""From command-line words to a tree of overrides.

A flag is a dotted path (`--optim.learning_rate`), the last name of a path when only one path ends in it
(`--learning_rate`), or a name known from other tools (`familiar.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pydantic
import yaml

from luthier.base.config import Config, Tree, assign, nearest
from luthier.base.errors import ConfigError
from luthier.base.leaves import Leaf, leaves
from luthier.run.familiar import FAMILIAR, OWN
from luthier.run.translate import Ignored, Means, Refused
from luthier.run.values import INSTEAD, WORDS

_NUMBERS = pydantic.ConfigDict(allow_inf_nan=False)
_SHORT = re.compile(r"-(?!inf|nan)[A-Za-z][\w-]*(=.*)?")
"""What looks like a flag with one dash. Numbers below zero do not."""

UNSET = "null"
"""The word that unsets an optional setting."""


@dataclass
class Parsed:
    """What the command line changes, and what it asked for that changes nothing."""

    tree: Tree = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])


def parse(argv: Sequence[str], kind: type[Config]) -> Parsed:
    """Read flags into overrides of `kind`.

    `--x value`, `--x=value`, several values for lists, `--x` and `--no_x` for switches, JSON for mappings; dashes
    and underscores are the same, and the word null unsets.

    Raises:
        ConfigError: unknown, ambiguous, repeated or refused flags, and values of the wrong type.
    """
    known = leaves(kind)
    parsed = Parsed()
    seen: dict[str, str] = {}
    found: list[tuple[str, Any]] = []
    for flag, words in _split(argv):
        for path, value in _read(flag, words, known, parsed.notes):
            if path in seen:
                raise _twice(flag, seen[path], same=(path, value) in found)
            seen[path] = flag
            found.append((path, value))
    for path, value in sorted(found, key=lambda setting: setting[0].count(".")):  # a mapping before what is in it
        assign(parsed.tree, path, value)
    method = parsed.tree.get("method", {})
    if isinstance(method, dict) and method.get("type") == "full" and len(method) > 1:
        fitting = _fitting("method", method, known)
        if fitting in ({"freeze"}, {"lisa"}):  # other tools say "full" and name the frozen part
            method["type"] = fitting.pop()
            parsed.notes.append(f"full with layers at rest is called {method['type']} here")
    return parsed


def choose_members(tree: Tree, kind: type[Config]) -> None:
    """Fill in the `type` of unions: the one member that has the settings given, else the default one."""
    known = leaves(kind)
    for group, below in tree.items():
        chosen = known.get(f"{group}.type")
        if chosen is None or not chosen.owners or not isinstance(below, dict) or "type" in below:
            continue
        fitting = _fitting(group, below, known)
        below["type"] = fitting.pop() if len(fitting) == 1 else chosen.default


def members_with(tree: Tree, group: str, kind: type[Config]) -> set[str]:
    """The members of a union that have every setting given, where none was named and any was given."""
    below = tree.get(group)
    return _fitting(group, below, leaves(kind)) if isinstance(below, dict) and below and "type" not in below else set()


def _fitting(group: str, below: Tree, known: Mapping[str, Leaf]) -> set[str]:
    """The union members that have every setting given."""
    members = set(known[f"{group}.type"].owners)
    for name in below:
        path = f"{group}.{name}"
        if path in known and name != "type":
            members &= set(known[path].owners)
    return members


def _twice(flag: str, earlier: str, *, same: bool) -> ConfigError:
    """A setting that two flags make, `same` or not."""
    if flag == earlier:
        fix = None
    elif same:
        fix = f"{earlier} says the same"
    else:
        fix = f"{earlier} sets the same to something else. Leave one of them out"
    return ConfigError("given twice", where=flag, code="repeated_flag", fix=fix)


def _split(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the words that follow it."""
    found: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found.append(("--" + flag[2:].replace("-", "_"), [value] if equals else []))
        elif _SHORT.fullmatch(word):
            raise _short(word, found[-1][0] if found else None)
        elif found:
            found[-1][1].append(word)
        else:
            raise ConfigError(f"unexpected word {word!r}", code="bad_usage", fix="Settings are given as --name value")
    return found


def _short(word: str, before: str | None) -> ConfigError:
    """A word that looks like a flag and would be taken for one of the values before it."""
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    hint = f"did you mean --{name}?" if len(name) > 1 else "-h lists them"
    fix = f"Flags begin with two dashes: {hint}"
    if before is None:
        return ConfigError(f"unexpected word {word!r}", code="unknown_flag", fix=fix)
    fix += f" As a value it is written {before}={word}"
    return ConfigError(f"expected a value, got {word!r}", where=before, code="unknown_flag", fix=fix)


def _read(flag: str, words: list[str], known: Mapping[str, Leaf], notes: list[str]) -> list[tuple[str, Any]]:
    """The settings that one flag makes: (path, value) each."""
    name = flag.removeprefix("--")
    name = OWN.get(name, name) if OWN.get(name) in known else name
    entry = FAMILIAR.get(name)
    if isinstance(entry, Means) and (name not in known or (entry.translate and known[name].is_dict)):
        meant = entry.read(flag, words)
        values = {path: value for path, value in meant.values.items() if path in known}
        if values or not meant.values:
            notes.extend(meant.notes)
            return [(path, convert(flag, known[path], value)) for path, value in values.items()]
    leaf = known.get(name) or _only(flag, name, known)
    if leaf is not None:
        return [(leaf.path, convert(flag, leaf, words))]
    if isinstance(entry, Ignored):
        notes.append(f"{flag} changes nothing: {entry.why}")
        return []
    if isinstance(entry, Refused):
        if words and words == [entry.unless]:
            return []
        raise ConfigError(entry.what, where=flag, fix=entry.fix, code="unsupported_flag")
    off = _switched_off(flag, name, known)
    if off is not None:
        _expect(not words, flag, "no value", words)
        return [(off.path, False)]
    inside = _inside(name, known)
    if inside is None:
        raise _unknown(flag, name, known)
    values = [yaml.safe_load(word) for word in words]
    return [(inside, values if len(values) > 1 else values[0] if values else None)]


def _inside(name: str, known: Mapping[str, Leaf]) -> str | None:
    """The path of something in a mapping, whose own path may be told by its last name alone."""
    for leaf in known.values():
        for start in (f"{leaf.path}.", f"{leaf.name}."):
            if leaf.is_dict and name.startswith(start):
                return f"{leaf.path}.{name.removeprefix(start)}"
    return None


def _only(flag: str, name: str, known: Mapping[str, Leaf]) -> Leaf | None:
    """The one setting whose path ends in `name`, if any."""
    same = [leaf for leaf in known.values() if leaf.name == name]
    if len(same) > 1:
        fix = "Say which: " + ", ".join(f"--{leaf.path}" for leaf in same)
        raise ConfigError("this name stands for several settings", where=flag, code="ambiguous_flag", fix=fix)
    return same[0] if same else None


def _switched_off(flag: str, name: str, known: Mapping[str, Leaf]) -> Leaf | None:
    """The switch that `--no_x` or `--a.no_x` turns off."""
    group, dot, last = name.rpartition(".")
    if not last.startswith("no_"):
        return None
    positive = group + dot + last.removeprefix("no_")
    entry = FAMILIAR.get(positive)
    path = entry.path if isinstance(entry, Means) and entry.path in known else positive
    leaf = known.get(path) or _only(flag, path, known)
    return leaf if leaf is not None and leaf.is_bool else None


def setting(name: str, known: Mapping[str, Leaf], *, prefix: str) -> Leaf:
    """The one setting that a path, its last name, or a name known from other tools stands for.

    Args:
        prefix: what stands before names where they are written, for messages.

    Raises:
        ConfigError: none or several of that name.
    """
    flag, name = prefix + name, name.replace("-", "_")
    entry = FAMILIAR.get(name)
    if name not in known and isinstance(entry, Means) and entry.path in known:
        return known[entry.path]
    leaf = known.get(name) or _only(flag, name, known)
    if leaf is None:
        raise _unknown(flag, name, known, prefix)
    return leaf


def place_of(name: str, known: Mapping[str, Leaf]) -> str | None:
    """The path of the setting that a name of ours or of other tools stands for; None for none or several."""
    entry = FAMILIAR.get(name)
    if isinstance(entry, Means) and entry.path in known:
        return entry.path
    same = [leaf.path for leaf in known.values() if leaf.name == name]
    return same[0] if len(same) == 1 else None


def _unknown(flag: str, name: str, known: Mapping[str, Leaf], prefix: str = "--") -> ConfigError:
    usable = [other for other, entry in FAMILIAR.items() if isinstance(entry, Means) and entry.path in known]
    hint = nearest(name, [*usable, *(leaf.name for leaf in known.values()), *known])
    fix = f"Did you mean {prefix}{hint}?" if hint else "-h lists all flags"
    return ConfigError("unknown flag", where=flag, code="unknown_flag", fix=fix)


def convert(flag: str, leaf: Leaf, words: Sequence[str]) -> Any:
    """The value of a setting from the words after its flag.

    Raises:
        ConfigError: naming the flag, for words that the setting does not take.
    """
    known_words = WORDS.get(leaf.path, {})
    words = [known_words.get(word, word) for word in words]
    if leaf.optional and words == [UNSET]:
        return None
    if leaf.is_bool:
        _expect(len(words) < 2, flag, leaf.expected, words)
        raw: Any = words[0] if words else True
    elif leaf.is_dict:
        raw = _json(flag, leaf, words)
    elif leaf.is_many and not (leaf.is_one and len(words) == 1):
        _expect(len(words) > 0, flag, leaf.expected, words)
        raw = tuple(words)
    else:
        _expect(len(words) == 1, flag, leaf.expected, words)
        raw = words[0]
    annotation: Any = Annotated[(leaf.annotation, *leaf.constraints)] if leaf.constraints else leaf.annotation
    try:
        value = pydantic.TypeAdapter(annotation, config=_NUMBERS).validate_python(raw)
        return raw if leaf.is_dict else value
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        out_of_range = problem["type"].startswith(("greater", "less", "too_", "finite"))
        if problem["type"] == "string_too_short":
            _expect(False, flag, f"{leaf.expected} that {'are' if leaf.is_many else 'is'} not empty", words)
        limit = f" that {str(problem['msg']).removeprefix('Input ').replace('should be', 'is')}" if out_of_range else ""
        fix = INSTEAD.get(leaf.path, {}).get(" ".join(words))
        _expect(False, flag, leaf.expected + limit, words, fix)


def _json(flag: str, leaf: Leaf, words: Sequence[str]) -> Any:
    try:
        return json.loads(" ".join(words))
    except json.JSONDecodeError:
        _expect(False, flag, leaf.expected, words)


def _expect(fine: bool, flag: str, expected: str, words: Sequence[str], fix: str | None = None) -> None:
    if not fine:
        got = repr(" ".join(words)) if words else "nothing"
        raise ConfigError(f"expected {expected}, got {got}", where=flag, code="bad_value", fix=fix)
