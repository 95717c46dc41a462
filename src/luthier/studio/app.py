"""`luthier studio`: the pages, served to browsers until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from typing import TYPE_CHECKING

from luthier.base.console import Console
from luthier.base.errors import MissingExtra
from luthier.serve.keys import Keys, allowed_hosts, read_keys
from luthier.studio.config import StudioConfig

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from luthier.studio.door import Door
    from luthier.studio.house import House


def studio(options: StudioConfig, console: Console) -> None:
    """Serve the pages until SIGTERM or Ctrl-C.  Commands that they started go on; models that talk are unloaded.

    Raises:
        ConfigError: a root that is no folder, a public address without a key, an address that is taken.
        MissingExtra: the extra `studio` is not installed.
    """
    keys = read_keys(options.host, options.api_key, None, os.environ)
    try:
        import_module("nicegui")
        from luthier.serve.server import address_of, bound
    except ImportError as error:
        raise MissingExtra(error.name or "nicegui", "studio", what_for="luthier studio") from error
    from luthier.studio.house import open_house
    from luthier.studio.roots import Roots

    house = open_house(Roots(options.root))
    sock = bound(options.host, options.port)
    address = address_of(sock)
    folders = ", ".join(map(str, house.roots.folders))
    told = f"Studio at {address} over {folders} (Ctrl-C ends it; trainings go on)"
    # Commands that pages start get no key of ours.
    os.environ.pop("LUTHIER_API_KEY", None)
    hosts = allowed_hosts(options.host, options.allowed_hosts)
    asyncio.run(serve(house, keys, hosts, sock, lambda: console.result(told, url=address)))
    console.say("Stopped")


def application(house: House, keys: Keys, hosts: frozenset[str] | None) -> Door:
    """The pages behind their door.  One a process: NiceGUI keeps its pages in one place."""
    from fastapi import FastAPI
    from nicegui import app, ui

    from luthier.studio.door import Door
    from luthier.studio.pages import all_pages

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    all_pages(house)
    app.on_shutdown(house.talks.close)
    ui.run_with(outer, title="Luthier Studio", favicon="🎻", dark=None, tailwind=False, show_welcome_message=False)
    return Door(outer, keys, hosts)  # pyright: ignore[reportArgumentType]


async def serve(
    house: House, keys: Keys, hosts: frozenset[str] | None, sock: socket.socket, listening: Callable[[], object]
) -> None:
    """Serve on a socket until a signal; `listening` is called when requests are answered."""
    import uvicorn

    from luthier.serve.server import Orderly

    settings = uvicorn.Config(
        application(house, keys, hosts),  # pyright: ignore[reportArgumentType]
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="websockets-sansio",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    try:
        await Orderly(settings, listening).serve(sockets=[sock])
    finally:
        await house.talks.close()
        sock.close()
