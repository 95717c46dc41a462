"""The pages, each at its address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.responses import FileResponse
from nicegui import app, ui

from luthier.base.errors import LuthierError
from luthier.studio.house import House
from luthier.studio.pages import chat, data, job, reports, run, runs, train
from luthier.studio.pages.frame import framed
from luthier.studio.words import Words

_PAPER = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
"""For pages that were made from people's data: no scripts, nothing fetched, no part in the Studio."""


def all_pages(house: House) -> None:
    """Put every page at its address."""

    async def one_run(request: Request, t: Words) -> None:
        await run.show(house, house.roots.find_run(request.query_params.get("path", "")), t)

    async def one_job(request: Request, t: Words) -> None:
        await job.show(house, request.query_params.get("name", ""), t)

    pages: dict[str, tuple[str, Callable[[Request, Words], Awaitable[None]]]] = {
        "/": ("runs", lambda request, t: runs.show(house, t)),
        "/run": ("runs", one_run),
        "/job": ("runs", one_job),
        "/train": ("train", lambda request, t: train.show(house, t)),
        "/data": ("data", lambda request, t: data.show(house, t)),
        "/chat": ("chat", lambda request, t: chat.show(house, request.query_params.get("model", ""), t)),
        "/reports": ("reports", lambda request, t: reports.show(house, request.query_params.get("path", ""), t)),
    }
    for address, (here, draw) in pages.items():
        _page(address, here, draw)
    _files(house)


def _page(address: str, here: str, draw: Callable[[Request, Words], Awaitable[None]]) -> None:
    @ui.page(address, response_timeout=30.0)
    async def _(request: Request) -> None:
        with framed(request, here) as t:
            await draw(request, t)


def _files(house: House) -> None:
    """Pages and pictures from below the roots, as they lie there."""

    def sent(path: str, kind: str) -> Response:
        try:
            found = house.roots.find(path)
        except LuthierError:
            return Response(status_code=404)
        suffix = {"text/html": ".html", "image/png": ".png"}[kind]
        if found.suffix != suffix or not found.is_file():
            return Response(status_code=404)
        return FileResponse(found, media_type=kind, headers={"content-security-policy": _PAPER})

    @app.get("/paper")
    def paper(path: str) -> Response:
        return sent(path, "text/html")

    @app.get("/picture")
    def picture(path: str) -> Response:
        return sent(path, "image/png")
