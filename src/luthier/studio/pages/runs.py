"""The page of all runs."""

from __future__ import annotations

import time
from asyncio import to_thread
from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from luthier.run.state import RunState
from luthier.studio.children import Child
from luthier.studio.figures import ago, gib, left, number, steps
from luthier.studio.form import line
from luthier.studio.house import House
from luthier.studio.pages.parts import phase, run_link, title, tried
from luthier.studio.roots import Roots
from luthier.studio.words import Words

_COLUMNS = ("name", "phase", "step", "loss", "tokens_per_second", "memory", "eta", "updated")
_NAME = """
<q-td :props="props"><a :href="props.row.link">{{ props.value }}</a>
<div class="quiet small">{{ props.row.about }}</div></q-td>
"""
_PHASE = """
<q-td :props="props"><span :class="'phase ' + props.row.kind">{{ props.row.shown.phase }}</span></q-td>
"""
_STEP = """
<q-td :props="props"><div>{{ props.row.shown.step }}</div>
<q-linear-progress :value="props.row.share" size="4px" rounded style="min-width: 6rem" /></q-td>
"""
_CELL = '<q-td :props="props">{{ props.row.shown[props.col.name] }}</q-td>'
_CARD = """
<a class="card-run" :href="props.row.link"><div class="break"><b>{{ props.row.name }}</b></div>
<div class="quiet small break">{{ props.row.about }}</div>
<div class="line"><span :class="'phase ' + props.row.kind">{{ props.row.shown.phase }}</span>
<span>{{ props.row.shown.step }}</span><span>{{ props.row.shown.loss }}</span>
<span class="quiet">{{ props.row.shown.updated }}</span></div>
<q-linear-progress :value="props.row.share" size="4px" rounded /></a>
"""
_SHOWN = 8
"""Commands that are listed."""


def rows(states: Sequence[RunState], roots: Roots, now: float, t: Words) -> list[dict[str, Any]]:
    """One row of the table for each run: raw values to sort by, and how they are shown."""
    return [
        {
            "id": str(state.path),
            "link": run_link(state.path),
            "kind": state.phase,
            "name": roots.name(state.path),
            "about": "  ".join(part for part in (state.model, state.task, state.method) if part),
            "phase": state.phase,
            "share": min(1.0, state.step / state.total_steps) if state.total_steps else 0.0,
            "step": state.step,
            "loss": state.loss,
            "tokens_per_second": state.tokens_per_second,
            "memory": state.memory_gib,
            "eta": state.eta_seconds,
            "updated": state.updated,
            "shown": {
                "phase": t("stopping") if state.stopping else t(state.phase),
                "step": steps(state.step, state.total_steps),
                "loss": number(state.loss),
                "tokens_per_second": number(state.tokens_per_second),
                "memory": gib(state.memory_gib),
                "eta": left(state.eta_seconds),
                "updated": ago(max(0.0, now - state.updated), t),
            },
        }
        for state in states
    ]


def how(child: Child) -> str:
    """How a command stands: running, done, failed, or ended with nobody to say how."""
    if child.running:
        return "running"
    code = child.exit_code
    return "ended" if code is None else "done" if code == 0 else "stopped" if code == 75 else "failed"


async def show(house: House, t: Words) -> None:
    """Draw the page and keep it up to date."""
    title(t("runs"))
    found = await to_thread(house.states)
    columns = [{"name": name, "label": t(name), "field": name, "sortable": True, "align": "left"} for name in _COLUMNS]
    table = ui.table(columns=columns, rows=rows(found, house.roots, time.time(), t), row_key="id")
    table.props(
        'flat hide-pagination hide-selected-banner :rows-per-page-options="[0]" :grid="window.innerWidth < 900"'
    ).classes("wide")
    for name, slot in (("name", _NAME), ("phase", _PHASE), ("step", _STEP)):
        table.add_slot(f"body-cell-{name}", slot)
    table.add_slot("body-cell", _CELL)
    table.add_slot("item", _CARD)
    table.set_selection("multiple")
    compare = ui.button(t("compare"), icon="o_balance", on_click=tried(lambda: _compare(house, table.selected)))
    compare.bind_visibility_from(table, "selected", backward=lambda chosen: len(chosen) > 1).props("outline")
    with ui.element("div").classes("box") as empty:
        ui.label(t("no_runs"))
        ui.link(t("first_run"), "/train").classes("linked")
    started = ui.column().classes("wide")

    async def refresh() -> None:
        states = await to_thread(house.states)
        table.rows = rows(states, house.roots, time.time(), t)
        table.visible, empty.visible = bool(states), not states
        _commands(started, house, t)

    await refresh()
    ui.timer(2.0, refresh)


def _compare(house: House, chosen: Sequence[Mapping[str, Any]]) -> None:
    names = [house.roots.name(house.roots.find(str(row["id"]))) for row in chosen]
    child = house.children.start("compare", ["compare", *names, "--output_dir", "{folder}"])
    ui.navigate.to(f"/job?name={child.name}")


def _commands(place: ui.column, house: House, t: Words) -> None:
    """The commands that were started from pages."""
    children = house.children.all()[:_SHOWN]
    place.clear()
    if not children:
        return
    with place:
        title(t("commands"), level=2)
        for child in children:
            with ui.element("div").classes("line wide"):
                phase(how(child), t(how(child)))
                ui.link(line(child.words), f"/job?name={child.name}").classes("linked small break grow")
