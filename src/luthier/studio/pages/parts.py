"""Pieces that several pages are made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import ui

from luthier.base.errors import LuthierError
from luthier.studio.words import Words


def title(text: str, *, level: int = 1) -> ui.element:
    """A heading."""
    with ui.element(f"h{level}") as heading:
        ui.label(text)
    return heading


def box() -> ui.element:
    """A framed piece of a page."""
    return ui.element("div").classes("box")


def command(text: str, t: Words) -> ui.label:
    """A command that can be copied; the label may be given other text later."""
    with ui.element("div").classes("command"):
        label = ui.label(text).classes("console")

        def copy() -> None:
            ui.clipboard.write(label.text)
            ui.notify(t("copied"))

        icon_button("o_content_copy", t("copy"), copy)
    return label


def icon_button(icon: str, name: str, act: Callable[..., Any] | None = None) -> ui.button:
    """A round button; its name is read aloud, and shown when a mouse rests on it."""
    made = ui.button(icon=icon, on_click=act).props(f'flat round dense aria-label="{name}"')
    made.tooltip(name)
    return made


def phase(name: str, text: str) -> ui.label:
    """A state with its coloured dot."""
    return ui.label(text).classes(f"phase {name}")


def paper(path: Path) -> None:
    """A page of ours from a file, in a frame that runs no scripts and sees nothing of this page."""
    frame = ui.element("iframe").classes("paper").props(f'src="/paper?path={quote(str(path))}"')
    frame.props["sandbox"] = ""


def run_link(path: Path) -> str:
    """Where the page of a run is."""
    return f"/run?path={quote(str(path))}"


def told(error: LuthierError) -> None:
    """Show an error in passing."""
    ui.notify(str(error), type="negative", multi_line=True, timeout=12_000)


def tried(work: Callable[[], Awaitable[None] | None]) -> Callable[[], Awaitable[None]]:
    """What a button does, its errors shown."""

    async def do() -> None:
        try:
            made = work()
            if made is not None:
                await made
        except LuthierError as error:
            told(error)

    return do
