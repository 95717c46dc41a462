"""Choosing files and folders below the roots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nicegui import ui

from luthier.base.errors import LuthierError
from luthier.studio.figures import size
from luthier.studio.house import House
from luthier.studio.pages.parts import told
from luthier.studio.roots import Entry
from luthier.studio.words import Words

_LISTED = 500
"""Names of one folder that are shown."""


class Picker:
    """A dialog that shows one folder at a time.

    Args:
        picked: told the name of a file or folder, as commands write it.
    """

    def __init__(self, house: House, picked: Callable[[str], None], t: Words):
        self._house, self._picked, self._t = house, picked, t
        self._folder = house.roots.first
        with ui.dialog() as self._dialog, ui.card().classes("picker"):
            self._where = ui.label().classes("small quiet break")
            self._list = ui.list().props("dense separator").classes("wide picked")
            with ui.element("div").classes("line wide"):
                ui.button(t("use_folder"), on_click=lambda: self._choose(self._folder)).props("flat")
                ui.button(t("close"), on_click=self._dialog.close).props("flat")

    def open(self) -> None:
        """Show it where it was last."""
        self._go(self._folder)
        self._dialog.open()

    def _go(self, folder: Path) -> None:
        roots = self._house.roots
        try:
            entries = roots.listing(roots.find(str(folder)))
        except LuthierError as error:
            told(error)
            return
        self._folder = folder
        self._where.text = str(folder)
        self._list.clear()
        with self._list:
            if folder not in roots.folders:
                self._item("o_arrow_upward", "..", "", lambda: self._go(folder.parent))
            for other in roots.folders:
                if other != folder and len(roots.folders) > 1:
                    self._item("o_home", str(other), "", partial(self._go, other))
            for entry in entries[:_LISTED]:
                self._entry(entry)
            if not entries:
                ui.item_label(self._t("nothing_here")).classes("quiet")

    def _entry(self, entry: Entry) -> None:
        icon = "o_folder" if entry.is_dir else "o_description"
        act = self._go if entry.is_dir else self._choose
        self._item(icon, entry.path.name, "" if entry.is_dir else size(entry.size), lambda: act(entry.path))

    def _item(self, icon: str, name: str, beside: str, act: Callable[[], None]) -> None:
        with ui.item(on_click=act):
            with ui.item_section().props("avatar"):
                ui.icon(icon)
            with ui.item_section():
                ui.item_label(name).classes("break")
            with ui.item_section().props("side"):
                ui.item_label(beside)

    def _choose(self, path: Path) -> None:
        self._dialog.close()
        self._picked(self._house.roots.name(path))
