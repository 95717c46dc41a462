"""The page of one run."""

from __future__ import annotations

import time
from asyncio import to_thread
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import ui

from luthier.run.state import RunState, ask_to_stop, state_of
from luthier.studio import record
from luthier.studio.curves import charts
from luthier.studio.figures import ago, gib, left, number, size, steps
from luthier.studio.house import House
from luthier.studio.pages.parts import box, command, paper, phase, title, tried
from luthier.studio.pages.reports import with_links
from luthier.studio.words import WORDS, Words

_CHARTS = ("loss", "evaluation", "learning_rate", "grad_norm", "tokens_per_second")


async def show(house: House, path: Path, t: Words) -> None:
    """Draw the page and keep it up to date."""
    state = await to_thread(state_of, path)
    title(house.roots.name(path))
    with ui.element("div").classes("line wide"):
        mark = phase(state.phase, t(state.phase))
        ui.label("  ".join(part for part in (state.model, state.task, state.method) if part)).classes(
            "quiet grow break"
        )
        stop = ui.button(t("stop"), icon="o_stop_circle", on_click=tried(lambda: _stop(path, t))).props("outline")
        resume = ui.button(t("resume"), icon="o_play_circle", on_click=tried(lambda: _resume(house, path)))
        talk = ui.button(t("talk"), icon="o_chat").props("outline")
        talk.on_click(lambda: ui.navigate.to(f"/chat?model={quote(house.roots.name(path))}"))
    trouble = ui.label().classes("console")
    bar = ui.linear_progress(0.0, show_value=False, size="6px").props("rounded")
    numbers = _numbers(t)

    def stand(state: RunState) -> None:
        mark.text = t("stopping") if state.stopping else t(state.phase)
        mark.classes(replace=f"phase {state.phase}")
        bar.value = min(1.0, state.step / state.total_steps) if state.total_steps else 0.0
        trouble.text, trouble.visible = state.message, bool(state.message)
        stop.visible = state.live and state.holder is not None and state.holder.ours
        stop.enabled = not state.stopping
        resume.visible, talk.visible = state.resumable, state.checkpoint is not None
        numbers(state)

    stand(state)
    curves = _tabs(house, state, t)

    async def refresh() -> None:
        stand(await to_thread(state_of, path))
        await curves()

    await curves()
    ui.timer(2.0, refresh)


def _numbers(t: Words) -> Callable[[RunState], None]:
    """The row of numbers, and what brings them up to date."""
    names = ("step", "loss", "evaluation", "tokens_per_second", "memory", "eta", "updated")
    labels: dict[str, ui.label] = {}
    with ui.element("div").classes("cells"):
        for name in names:
            with ui.element("div").classes("cell"):
                ui.label(t(name)).classes("quiet small")
                with ui.element("b"):
                    labels[name] = ui.label()

    def write(state: RunState) -> None:
        values = (
            steps(state.step, state.total_steps),
            number(state.loss),
            number(state.eval_loss),
            number(state.tokens_per_second),
            gib(state.memory_gib),
            left(state.eta_seconds),
            ago(max(0.0, time.time() - state.updated), t),
        )
        for name, value in zip(names, values, strict=True):
            labels[name].text = value

    return write


def _tabs(house: House, state: RunState, t: Words) -> Callable[[], Any]:
    """Everything else of the run, behind tabs; returns what brings the curves up to date."""
    path = state.path
    names = ("overview", "report", "preview", "data", "events", "settings", "checkpoints", "use")
    with ui.tabs().props("dense no-caps align=left outside-arrows mobile-arrows").classes("wide") as tabs:
        for name in names:
            ui.tab(name, t(name))
    drawn: dict[str, Callable[[], None]] = {
        "report": lambda: _report(path, t),
        "preview": lambda: _preview(path, t),
        "data": lambda: _data(path, t),
        "events": lambda: _events(path),
        "settings": lambda: _settings(path, t),
        "checkpoints": lambda: _checkpoints(path, t),
        "use": lambda: _use(house, path, t),
    }
    panels: dict[str, ui.element] = {}
    with ui.tab_panels(tabs, value="overview", animated=False, keep_alive=False).classes("wide"):
        with ui.tab_panel("overview"):
            curves = _curves(path, t)
        for name in drawn:
            with ui.tab_panel(name):
                panels[name] = ui.column().classes("wide")

    def opened() -> None:
        draw = drawn.get(str(tabs.value))
        if draw is not None:
            panels[str(tabs.value)].clear()
            with panels[str(tabs.value)]:
                draw()

    tabs.on_value_change(opened)
    return curves


def _curves(path: Path, t: Words) -> Callable[[], Any]:
    shown: dict[str, tuple[ui.element, ui.echart]] = {}
    seen = [-1.0]
    nothing = ui.label(t("no_curves")).classes("quiet")
    with ui.element("div").classes("pair"):
        for name in _CHARTS:
            with box() as frame:
                title(t(name), level=2)
                shown[name] = (frame, ui.echart({}).style("height: 15rem; width: 100%"))

    async def refresh() -> None:
        file = path / "metrics.jsonl"
        changed = file.stat().st_mtime if file.exists() else 0.0
        if changed == seen[0]:
            return
        seen[0] = changed
        drawn = charts(await to_thread(record.measured, path), t("in_training"), t("evaluation"))
        nothing.visible = not drawn
        for name, (frame, chart) in shown.items():
            frame.visible = name in drawn
            chart.options.clear()
            chart.options.update(drawn.get(name, {}))
            chart.update()

    return refresh


def _report(path: Path, t: Words) -> None:
    text = record.text_of(path, "report.md")
    if text is None:
        ui.label(t("nothing_here")).classes("quiet")
        return
    ui.markdown(with_links(text, path), extras=["tables", "fenced-code-blocks"])


def _preview(path: Path, t: Words) -> None:
    if (path / "preview.html").exists():
        paper(path / "preview.html")
    else:
        ui.label(t("nothing_here")).classes("quiet")


def _data(path: Path, t: Words) -> None:
    sets = record.data_sets(path)
    if not sets:
        ui.label(t("nothing_here")).classes("quiet")
        return
    numbers = ("rows", "kept", "samples", "tokens")
    columns = [{"name": name, "label": t(name), "field": name, "align": "left"} for name in ("name", *numbers)]
    columns.append({"name": "trained_share", "label": t("trained_share"), "field": "trained_share", "align": "left"})
    rows: list[dict[str, Any]] = []
    for one in sets:
        tokens, trained = one.get("tokens"), one.get("trained_tokens")
        share = trained / tokens if isinstance(trained, int) and isinstance(tokens, int) and tokens else 0.0
        rows.append({**{name: one.get(name) for name in ("name", *numbers)}, "trained_share": f"{share:.0%}"})
    ui.table(columns=columns, rows=rows, row_key="name").props("flat hide-pagination").classes("wide")
    rejected = record.text_of(path, "rejected.jsonl")
    if rejected:
        ui.label(rejected[:20_000]).classes("console")


def _events(path: Path) -> None:
    for at, level, message in record.told(path):
        with ui.element("div").classes("line wide"):
            ui.label(at).classes("quiet small")
            ui.label(message).classes("grow break" + (" text-negative" if level == "error" else ""))


def _settings(path: Path, t: Words) -> None:
    for name, heading in (("config.yaml", "settings"), ("env.json", "environment"), ("memory.json", "memory")):
        text = record.text_of(path, name)
        if text is not None:
            title(t(heading), level=2)
            ui.label(text).classes("console")


def _checkpoints(path: Path, t: Words) -> None:
    found = record.checkpoints(path)
    for kept in found:
        with ui.element("div").classes("line wide"):
            ui.label(kept.name).classes("break")
            for mark in kept.marks:
                ui.badge(t(mark)).props("outline")
            ui.label(size(kept.bytes)).classes("quiet")
            ui.label(ago(max(0.0, time.time() - kept.saved), t)).classes("quiet")
    if not found:
        ui.label(t("nothing_here")).classes("quiet")


def _use(house: House, path: Path, t: Words) -> None:
    commands, python = record.commands(state_of(path), house.roots.name(path))
    for purpose, text in commands.items():
        title(t(purpose) if purpose in WORDS else purpose, level=2)
        command(text, t)
    if python:
        title(t("in_python"), level=2)
        command("\n".join(python), t)
    if not commands:
        ui.label(t("nothing_here")).classes("quiet")


async def _stop(path: Path, t: Words) -> None:
    await to_thread(ask_to_stop, path)
    ui.notify(t("stop_asked"), type="info")


def _resume(house: House, path: Path) -> None:
    name = house.roots.name(path)
    child = house.children.start("train", ["train", f"{name}/config.yaml", "--resume_from_checkpoint", name])
    ui.navigate.to(f"/job?name={child.name}")
