"""The page that starts a training."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import orjson
import yaml
from nicegui import ui

from luthier.run.config import RunConfig
from luthier.studio.children import FOLDER, ask, error_in
from luthier.studio.form import FIRST, fields, line, titles, words
from luthier.studio.house import House
from luthier.studio.pages.fields import Form
from luthier.studio.pages.parts import command, paper, title, tried
from luthier.studio.words import Words

_PREVIEWED = ("objective.", "model.", "data.")
"""Settings that decide what a model sees of its data."""
_ROWS = 12


async def show(house: House, t: Words) -> None:
    """Draw the page."""
    title(t("train"))
    ui.label(t("train_about")).classes("quiet")

    def changed() -> None:
        shown.text = line(["train", *words(form.known, form.values)])

    form = Form(fields(RunConfig), FIRST, titles(RunConfig), house, changed, t)
    title(t("as_command"), level=2)
    shown = command(line(["train"]), t)
    with ui.element("div").classes("line wide"):
        check = ui.button(t("check"), icon="o_fact_check").props("outline")
        look = ui.button(t("look"), icon="o_visibility").props("outline")
        plan = ui.button(t("plan"), icon="o_memory").props("outline")
        start = ui.button(t("start"), icon="o_play_circle")
        busy = ui.spinner(size="1.5rem")
    busy.visible = False
    answer = ui.column().classes("wide")
    desk = _Desk(house, form, answer, t)
    for button, work in ((check, desk.check), (look, desk.look), (plan, desk.plan), (start, desk.start)):
        button.on_click(tried(work))
        busy.bind_visibility_from(desk, "busy")
        button.bind_enabled_from(desk, "busy", backward=lambda busy: not busy)


class _Desk:
    """What the buttons do with the form."""

    def __init__(self, house: House, form: Form, answer: ui.column, t: Words):
        self.busy = False
        self._house, self._form, self._answer, self._t = house, form, answer, t

    async def check(self) -> None:
        """Show the settings that the run would have, or what is wrong with them."""
        settings = await self._resolved()
        if settings is None:
            return
        with self._answer:
            ui.label(self._t("settings_fit")).classes("text-positive")
            ui.label(as_yaml(settings)).classes("console")

    async def look(self) -> None:
        """Show rows of the data as the model would see them."""
        settings = await self._resolved()
        if settings is not None:
            await self._page([*preview_words(self._form, settings), "--rows", str(_ROWS)])

    async def plan(self) -> None:
        """Show what the run would need: memory, disk, steps, time."""
        if await self._resolved() is not None:
            await self._page(["plan", "train", *words(self._form.known, self._form.values)])

    async def start(self) -> None:
        """Start the run with exactly the settings that were shown."""
        settings = await self._resolved()
        if settings is None:
            return
        recipe = {"recipe.yaml": as_yaml(settings)}
        child = self._house.children.start("train", ["train", "{folder}/recipe.yaml"], recipe)
        ui.navigate.to(f"/job?name={child.name}")

    async def _page(self, said: Sequence[str]) -> None:
        """Show the page that a command writes; it goes when the reader does."""
        file = self._house.roots.first / FOLDER / f"shown-{secrets.token_hex(8)}.html"
        file.parent.mkdir(exist_ok=True)
        await self._ask([*said, "--html", self._house.roots.name(file)])
        if file.exists():  # a plan that does not fit tells so in its page, too
            with self._answer:
                paper(file)
        ui.context.client.on_disconnect(lambda: file.unlink(missing_ok=True))

    async def _resolved(self) -> dict[str, Any] | None:
        """The whole settings of the run, or None where the command line refuses them.

        Raises:
            ConfigError: a path that leads out of the roots.
        """
        said = words(self._form.known, self._form.values)
        self._house.roots.refuse_outside(said)
        out = await self._ask(["train", *said, "--dry_run", "--json"])
        if out is None:
            return None
        settings = next(row for row in map(orjson.loads, out.splitlines()) if row.get("type") == "result")
        settings.pop("type")
        return settings

    async def _ask(self, said: Sequence[str]) -> str | None:
        """What a command printed; None when it failed, which is then shown."""
        self._answer.clear()
        self.busy = True
        try:
            code, out, told = await ask(said, self._house.roots.first)
        finally:
            self.busy = False
        if code == 0:
            return out
        with self._answer:
            ui.label(error_in(out) or told or self._t("failed")).classes("console text-negative")
        return None


def as_yaml(settings: dict[str, Any]) -> str:
    """Settings as a recipe."""
    return yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)


def preview_words(form: Form, settings: dict[str, Any]) -> list[str]:
    """The command that shows what a model would see of its data; what is learned is as the run has found out."""
    known = {path: field for path, field in form.known.items() if path.startswith(_PREVIEWED) or path == "seed"}
    values = {**form.values, "objective.type": ""}
    return ["preview", *words(known, values), "--task_type", str(settings["objective"]["type"])]
