"""The page of one command that was started here."""

from __future__ import annotations

from asyncio import to_thread
from pathlib import Path

from nicegui import ui

from luthier.studio.children import Child
from luthier.studio.form import line
from luthier.studio.house import House
from luthier.studio.pages.parts import command, paper, phase, run_link, title, tried
from luthier.studio.pages.runs import how
from luthier.studio.record import report_of, run_of
from luthier.studio.words import Words


async def show(house: House, name: str, t: Words) -> None:
    """Draw the page and keep it up to date."""
    child = house.children.find(name)
    title(t("command"))
    command(line(child.words), t)
    with ui.element("div").classes("line wide"):
        mark = phase(how(child), t(how(child)))
        ui.element("div").classes("grow")
        stop = ui.button(t("stop"), icon="o_stop_circle", on_click=tried(lambda: _stop(child, t))).props("outline")
        link = ui.button(t("open_run"), icon="o_timeline")
        link.visible = False  # until a run is found: what is shown while that is looked for would be clicked in vain
    log = ui.label().classes("console tall")
    result = ui.column().classes("wide")
    found: list[Path] = []
    link.on_click(lambda: ui.navigate.to(run_link(found[0])))

    async def refresh() -> None:
        state = how(child)
        mark.text = t(state)
        mark.classes(replace=f"phase {state}")
        stop.visible, log.text = state == "running", await to_thread(child.tail)
        if not found and (run := await to_thread(run_of, child, house.children.root)) is not None:
            found.append(run)
        link.visible = bool(found)
        if state != "running":
            timer.cancel()
            _result(child, house, result, t)

    timer = ui.timer(1.0, refresh)
    await refresh()


def _result(child: Child, house: House, place: ui.column, t: Words) -> None:
    """What a command of the workshop has left: its report."""
    report = report_of(child, house.children.root)
    with place:
        if report is not None:
            title(t("report"), level=2)
            paper(report)


def _stop(child: Child, t: Words) -> None:
    child.stop()
    ui.notify(t("stop_asked"), type="info")
