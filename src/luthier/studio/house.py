"""What all pages share: the folders, the commands that were started, the models that talk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.run.state import RunState, state_of
from luthier.studio.children import Children
from luthier.studio.roots import Roots
from luthier.studio.talks import Talks

_FRESH = 2.0
"""Seconds that a search of the folders is believed, however many pages are open."""
_SHARE = 10
"""So many times as long as a search took it is believed, too: large folders are searched less often."""


@dataclass
class House:
    """One Studio."""

    roots: Roots
    children: Children
    talks: Talks
    _found: dict[str, tuple[float, Any]] = field(default_factory=dict[str, tuple[float, Any]], repr=False)

    def states(self) -> list[RunState]:
        """How every run stands, those at work first, then the latest."""

        def look() -> list[RunState]:
            states = [state_of(run) for run in self.roots.runs()]
            return sorted(states, key=lambda state: (not state.live, -state.updated))

        return self._lately("states", look)

    def models(self) -> list[Path]:
        """Folders that hold a model or an adapter, outside of runs."""
        return self._lately("models", self.roots.models)

    def _lately(self, name: str, look: Callable[[], Any]) -> Any:
        until, found = self._found.get(name, (0.0, None))
        began = time.monotonic()
        if began > until:
            found = look()
            ended = time.monotonic()
            self._found[name] = (ended + max(_FRESH, _SHARE * (ended - began)), found)
        return found


def open_house(roots: Roots) -> House:
    """A Studio over these folders."""
    return House(roots, Children(roots.first), Talks(roots.first))
