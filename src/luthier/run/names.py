"""What a setting is called on the command line: its own path, and names that people know from other tools."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.base.leaves import Leaf
from luthier.run.familiar import FAMILIAR, OWN
from luthier.run.translate import Means


def names_of(leaf: Leaf, settings: Mapping[str, Leaf] = {}) -> tuple[list[str], list[str]]:
    """The flags that set a setting, the best known first, and those that take other values than ours.

    Args:
        settings: all settings of the command; a name that one of them has is not another's.
    """
    means = {
        name: entry
        for name, entry in FAMILIAR.items()
        if isinstance(entry, Means)
        and entry.path == leaf.path
        and (not entry.beside or entry.beside in settings)
        and OWN.get(name, name) not in settings.keys() - {leaf.path}
    }
    same = [name for name, entry in means.items() if entry.translate is None]
    other = [name for name, entry in means.items() if entry.translate is not None]
    return ["--" + name for name in dict.fromkeys([*same, leaf.path])], ["--" + name for name in other]
