"""The page of the data workshop: files in, a verb, its report."""

from __future__ import annotations

from asyncio import to_thread

from nicegui import ui

from luthier.base.errors import ConfigError
from luthier.prepare import verbs
from luthier.prepare.config import CommandConfig, ReadConfig
from luthier.studio.form import Field, fields, line, words
from luthier.studio.house import House
from luthier.studio.pages.fields import Form
from luthier.studio.pages.parts import command, title, tried
from luthier.studio.words import Words

_FIRST = "inspect"
"""The verb that one begins with: it looks and changes nothing."""


async def show(house: House, t: Words) -> None:
    """Draw the page."""
    title(t("data"))
    ui.label(t("data_about")).classes("quiet")
    names = {name: f"{name}: {verbs.about(name)}" for name in verbs.names()}
    chosen = ui.select(names, value=_FIRST, label=t("verb")).props("outlined dense options-dense").classes("wide")
    place = ui.column().classes("wide")
    desks: list[_Desk] = []

    async def choose() -> None:
        verb = await to_thread(verbs.load, str(chosen.value))
        inputs = desks[-1].form.values.get("inputs", "") if desks else ""
        place.clear()
        with place:
            desks.append(_Desk(house, verb.name, fields(CommandConfig, verb.config), t))
            if inputs:
                desks[-1].form.set("inputs", inputs)

    chosen.on_value_change(choose)
    await choose()


class _Desk:
    """One verb: its form, its command, and the button that starts it."""

    def __init__(self, house: House, verb: str, known: dict[str, Field], t: Words):
        self._house, self._verb = house, verb
        shared = set(ReadConfig.model_fields)
        first = ["inputs", "output", *(path for path in known if path not in shared | set(CommandConfig.model_fields))]
        if not verbs.load(verb).writes:
            first.remove("output")
        self.form = Form(known, first, {}, house, self._changed, t)
        title(t("as_command"), level=2)
        self._shown = command("", t)
        self._changed()
        ui.button(t("start"), icon="o_play_circle", on_click=tried(self._start))
        self._t = t

    def _words(self) -> list[str]:
        values = self.form.values
        said = words(self.form.known, {**values, "inputs": ""})
        inputs = words(self.form.known, {"inputs": values.get("inputs", "")})[1:]
        if "--report" not in said:
            said += ["--report", "{folder}/report.json"]
        return ["data", self._verb, *inputs, *said]

    def _changed(self) -> None:
        self._shown.text = line([word.replace("{folder}/", "") for word in self._words()])

    def _start(self) -> None:
        if not self.form.values.get("inputs", "").strip():
            raise ConfigError(self._t("no_inputs"))
        said = self._words()
        self._house.roots.refuse_outside([word for word in said if not word.startswith("{folder}")])
        child = self._house.children.start("data", said)
        ui.navigate.to(f"/job?name={child.name}")
