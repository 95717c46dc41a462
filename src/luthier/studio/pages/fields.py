"""Settings as a form: any config tree, its first settings open, the others folded behind a search."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from luthier.studio.form import Field, fault, matching, visible
from luthier.studio.house import House
from luthier.studio.pages.parts import icon_button
from luthier.studio.pages.picker import Picker
from luthier.studio.words import Words

_PLACES = ("model.path", "model.adapters", "data.datasets", "data.validation", "inputs", "output_dir", "output")
"""Settings that are files or folders."""


class Form:
    """Fields and what was typed into them.

    Args:
        known: all settings.
        first: paths of those that stand open, in order.
        heads: titles of the groups of the others.
        changed: called after every change.
    """

    def __init__(
        self,
        known: Mapping[str, Field],
        first: Sequence[str],
        heads: Mapping[str, str],
        house: House,
        changed: Callable[[], None],
        t: Words,
    ):
        self.known, self.values = known, dict[str, str]()
        self._first, self._heads, self._house, self._changed, self._t = first, heads, house, changed, t
        self._search = ""
        self._top = ui.element("div").classes("fields")
        with ui.expansion(t("all_settings"), icon="o_tune").classes("wide folded") as more:
            ui.input(t("search"), on_change=lambda event: self._find(event.value or "")).props(
                'outlined dense clearable debounce="250"'
            ).classes("wide")
            self._rest = ui.column().classes("wide")
        self._more = more
        more.on_value_change(self._draw_rest)
        self._draw_top()

    def set(self, path: str, text: str) -> None:
        """Fill a field from elsewhere."""
        self.values[path] = text
        self._redraw()

    def _write(self, path: str, value: Any) -> None:
        text = "" if value is None else str(value)
        if self.values.get(path, "") == text:
            return
        self.values[path] = text
        if path.endswith(".type"):
            self._redraw()
        else:
            self._changed()

    def _redraw(self) -> None:
        self._draw_top()
        self._draw_rest()
        self._changed()

    def _find(self, text: str) -> None:
        self._search = text
        self._draw_rest()

    def _draw_top(self) -> None:
        meant = {field.path for field in visible(self.known, self.values)}
        self._top.clear()
        with self._top:
            for path in self._first:
                if path in meant:
                    self._draw(self.known[path])

    def _draw_rest(self) -> None:
        self._rest.clear()
        if not self._more.value:
            return
        rest = [field for field in visible(self.known, self.values) if field.path not in self._first]
        groups: dict[str, list[Field]] = {}
        for field in matching(rest, self._search):
            groups.setdefault(field.group, []).append(field)
        with self._rest:
            for group, fields in groups.items():
                head = f"{group}: {self._heads[group]}" if group in self._heads else self._t("general")
                # What a search has found, and a single group, lies open.
                with (
                    ui.expansion(head, value=bool(self._search) or len(groups) == 1).classes("wide folded"),
                    ui.element("div").classes("fields"),
                ):
                    for field in fields:
                        self._draw(field)
            if not groups:
                ui.label(self._t("nothing_found")).classes("quiet")

    def _draw(self, field: Field) -> None:
        value = self.values.get(field.path, "")
        if field.kind in ("choice", "switch"):
            made: Any = ui.select(
                list(field.choices),
                label=field.flag,
                value=value or None,
                clearable=True,
                on_change=lambda event: self._write(field.path, event.value),
            )
            # What is not chosen is shown as what it then is.
            made.props(f'display-value="{value or field.default or self._t("unset")}"')
        else:
            made = ui.input(
                field.flag,
                value=value,
                placeholder=field.default or None,
                on_change=lambda event: self._write(field.path, event.value),
                validation=lambda text: fault(field, text or ""),
            )
            if field.path in _PLACES:
                with made.add_slot("append"):
                    icon_button("o_folder_open", self._t("browse"), lambda: self._pick(field))
        made.props("outlined dense stack-label hide-bottom-space").classes("field")
        with made:
            ui.tooltip(field.help).classes("help")

    def _pick(self, field: Field) -> None:
        def picked(name: str) -> None:
            before = shlex.split(self.values.get(field.path, "")) if field.kind == "list" else []
            self.set(field.path, shlex.join([*before, name]) if field.kind == "list" else name)

        with self._top:
            Picker(self._house, picked, self._t).open()
