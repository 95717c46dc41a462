"""A command's own words, told from the flags of settings that stand among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Own:
    """A command's own words by name, without dashes, and everything else."""

    values: Mapping[str, str]
    switches: frozenset[str]
    """Those that were given; `-h` is `help`."""
    rest: list[str]

    @property
    def recipe(self) -> Path | None:
        """The file of settings to start from."""
        return Path(self.values["config"]) if "config" in self.values else None


def take(argv: Sequence[str], takes: Mapping[str, str], switches: Collection[str], *, recipe_first: bool = True) -> Own:
    """Take a command's own words out.

    Args:
        takes: own flags that take a value, and what it is, for the message when there is none.
        switches: own flags that take none.
        recipe_first: whether a first word that is no flag is the `config`.

    Raises:
        ConfigError: a flag is given twice, its value is missing, or it has one and takes none.
    """
    words, rest = list(argv), list[str]()
    values, given, astray = dict[str, str](), set[str](), list[ConfigError]()
    if recipe_first and words and not words[0].startswith("-"):
        values["config"] = words.pop(0)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = "help" if word == "-h" else flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        if name in switches and not equals:
            given.add(name)
            if words and not words[0].startswith("-"):  # it belongs to no flag before the switch
                if recipe_first and "config" not in values:
                    values["config"] = words.pop(0)
                else:
                    astray.append(ConfigError(f"expected no value, got {words[0]!r}", where=flag, code="bad_value"))
        elif name not in takes:
            rest.append(word)
        else:
            if not equals:
                value = words.pop(0) if words and not words[0].startswith("--") else ""
            if not value:
                raise ConfigError(f"expected {takes[name]}, got nothing", where=flag, code="bad_value")
            if name in values:
                raise ConfigError("given twice", where=flag, code="repeated_flag")
            values[name] = value
    if astray and "help" not in given:
        raise astray[0]
    return Own(values, frozenset(given), rest)
