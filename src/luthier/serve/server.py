"""Running the server: from an engine to a listening process, and its orderly end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from types import FrameType
from typing import Any

import uvicorn

from luthier.base.errors import ConfigError
from luthier.generate.config import SamplingConfig
from luthier.serve.app import routes
from luthier.serve.config import ServerConfig
from luthier.serve.engines import Engine
from luthier.serve.fence import App, Fence, Receive, Scope, Send
from luthier.serve.gate import Gate
from luthier.serve.house import House
from luthier.serve.keys import allowed_hosts, read_keys
from luthier.serve.labelling import NoLabels
from luthier.serve.metrics import Metrics
from luthier.serve.specialists import SpecialistEngine
from luthier.serve.vectors import ByHiddenStates
from luthier.serve.voices import Voices


def build(
    engine: Engine,
    voices: Voices,
    config: ServerConfig,
    defaults: SamplingConfig,
) -> tuple[App, Gate]:
    """The whole application, and the gate that closes when it ends.

    A model that talks makes vectors of its hidden states, and gives no labels.

    Raises:
        ConfigError: the keys are wrong, or missing for a public address.
    """
    keys = read_keys(config.host, config.api_key, config.api_keys, os.environ)
    gate = Gate(engine.slots, config.queue)
    metrics = Metrics(engine, gate)
    mute = isinstance(engine, SpecialistEngine)
    comparing = engine if mute else ByHiddenStates(engine, voices)
    app = routes(House(engine, voices, config, defaults, gate, metrics, comparing, engine if mute else NoLabels()))
    hosts = allowed_hosts(config.host, config.allowed_hosts)
    fenced = Fence(app, keys, hosts, config.max_body, _trouble)  # pyright: ignore[reportArgumentType]
    return _Watched(fenced, metrics, log=config.log_requests), gate


def run(
    engine: Engine,
    voices: Voices,
    adapters: tuple[str, ...],
    config: ServerConfig,
    defaults: SamplingConfig,
    listening: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; a second one leaves at once.

    Args:
        adapters: names to load before listening.
        listening: told the address.

    Raises:
        LuthierError: the engine does not start, an adapter does not fit, the address is taken.
    """
    app, gate = build(engine, voices, config, defaults)
    sock = bound(config.host, config.port)
    asyncio.run(_serve(app, gate, engine, voices, adapters, config, sock, listening))


async def _serve(
    app: App,
    gate: Gate,
    engine: Engine,
    voices: Voices,
    adapters: tuple[str, ...],
    config: ServerConfig,
    sock: socket.socket,
    listening: Callable[[str], None],
) -> None:
    try:
        await engine.start()
        for name in adapters:
            await voices.load(name)
        settings = uvicorn.Config(
            app,  # pyright: ignore[reportArgumentType]
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=30,
        )
        server = _Server(settings, lambda: listening(address_of(sock)), gate, config.drain_timeout)
        await server.serve(sockets=[sock])
    finally:
        await engine.close()
        sock.close()


class Orderly(uvicorn.Server):
    """A signal ends it in order and a second one at once; uvicorn's own would then die of the signal all the same.

    Args:
        listening: called when it takes requests and signals.
    """

    def __init__(self, config: uvicorn.Config, listening: Callable[[], object]):
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        self.force_exit = self.should_exit
        self.should_exit = True


class _Server(Orderly):
    """Ends when all answers have: the socket stays open, so that who comes late is told so."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], object], gate: Gate, seconds: float):
        super().__init__(config, listening)
        self._gate, self._seconds = gate, seconds
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first begins the end, the second ends at once."""
        if self._draining is not None or self._gate.draining:
            self.should_exit = self.force_exit = True
            return
        self._gate.draining = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self._gate.drained(self._seconds)
        await asyncio.sleep(0.1)  # the last bytes of the last answer
        self.should_exit = True


class _Watched:
    """Counts requests by route and status, and logs them if wanted."""

    def __init__(self, app: App, metrics: Metrics, *, log: bool):
        self._app, self._metrics, self._log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # Paths that are no route are one label: clients could invent any number of them.
            route = scope.get("route")
            path = route.path if route is not None else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            if self._log:
                request_id = scope.get("state", {}).get("request_id", "-")
                sys.stderr.write(f"{request_id} {scope['method']} {path} {status} {time.monotonic() - began:.3f} s\n")


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ConfigError: code `cannot_listen`.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen there: {error.strerror or error}",
            where=f"{host}:{port}",
            code="cannot_listen",
            fix="Give another --port; 0 takes a free one",
        ) from error
    return sock


def address_of(sock: socket.socket) -> str:
    """Where a browser or a client finds it."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _trouble(request_id: str, error: Exception) -> None:
    """An error that nobody foresaw, on stderr; never what was asked or answered."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    sys.stderr.write(f"{request_id}: {type(error).__name__} at {where}\n")
