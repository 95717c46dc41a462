"""The page of reports: evaluations, comparisons, the workshop's."""

from __future__ import annotations

import time
from asyncio import to_thread
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from luthier.base.secrets import redact
from luthier.studio.figures import ago
from luthier.studio.house import House
from luthier.studio.pages.parts import command, paper, title
from luthier.studio.record import report_of
from luthier.studio.words import Words

_COMMANDS = (
    "luthier eval --adapters RUN --eval_dataset QUESTIONS.jsonl --compare base",
    "luthier data inspect ROWS.jsonl --report report.json",
)


async def show(house: House, named: str, t: Words) -> None:
    """All reports, or the one that is named."""
    if named:
        title(named)
        _one(house.roots.find(named), t)
        return
    title(t("reports"))
    found = await to_thread(_reports, house)
    for path in found:
        name = house.roots.name(path)
        with ui.element("div").classes("line wide"):
            ui.link(name, f"/reports?path={quote(name)}").classes("linked break grow")
            ui.label(ago(max(0.0, time.time() - path.stat().st_mtime), t)).classes("quiet small")
    if not found:
        ui.label(t("no_reports")).classes("quiet")
        for text in _COMMANDS:
            command(text, t)


def _reports(house: House) -> list[Path]:
    """Those that lie below the roots, and those of commands that were started here; the latest first."""
    started = [page for child in house.children.all() if (page := report_of(child, house.children.root)) is not None]
    return sorted({*house.roots.reports(), *started}, key=lambda path: path.stat().st_mtime, reverse=True)


def _one(path: Path, t: Words) -> None:
    if path.suffix == ".html":
        paper(path)
        return
    if path.suffix != ".md":
        ui.label(t("nothing_here")).classes("quiet")
        return
    text = redact(path.read_text(encoding="utf-8", errors="replace"))
    ui.markdown(with_links(text, path.parent), extras=["tables", "fenced-code-blocks"])


def with_links(text: str, folder: Path) -> str:
    """Markdown whose pictures and preview beside it are found by the page."""
    for picture in folder.rglob("*.png"):
        inside = str(picture.relative_to(folder))
        text = text.replace(f"]({inside})", f"](/picture?path={quote(str(picture))})")
    if (folder / "preview.html").exists():
        text = text.replace("](preview.html)", f"](/paper?path={quote(str(folder))}/preview.html)")
    return text
