"""A server in this process: its application called directly, or listening on a port."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn

from luthier.data.render import Renderer
from luthier.generate.config import SamplingConfig
from luthier.generate.continuous import Continuous
from luthier.model.config import ModelConfig
from luthier.model.load import load_model, load_tokenizer
from luthier.run.result import find
from luthier.run.serving import specialist
from luthier.serve.config import ServerConfig
from luthier.serve.local import LocalEngine
from luthier.serve.server import build
from luthier.serve.voices import Voice, Voices


class Kitchen:
    """An engine on a small model with its voices."""

    def __init__(self, folder: Path, adapters: Mapping[str, Path] = {}, slots: int = 4):
        config = ModelConfig(path=str(folder))
        tokenizer = load_tokenizer(config)
        self.model = load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False)
        self.renderer = Renderer(tokenizer)
        self.generator = Continuous(self.model, stop_ids=self.renderer.stop_ids, slots=slots)
        self.engine = LocalEngine(self.generator)
        self.voices = Voices(
            self.engine,
            ("tiny", Voice(self.renderer)),
            adapters,
            lambda path: Voice(self.renderer, folders=(str(path),)),
        )

    def app(self, **settings: Any) -> Any:
        """The application, as it listens on this machine's own address unless told otherwise."""
        return build(self.engine, self.voices, ServerConfig(**settings), SamplingConfig(temperature=1.0))[0]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which has OpenAI's shape and nothing else."""
        found = self.json
        assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}, found
        assert isinstance(found["error"]["message"], str) and found["error"]["message"], found
        return found["error"]


async def ask(
    app: Any,
    method: str,
    path: str,
    body: bytes | dict[str, Any] = b"",
    headers: Mapping[str, str] = {},
    host: str = "127.0.0.1",
) -> Reply:
    """One request to the application itself."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"host": host, "content-length": str(len(data)), "content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "http",
        "headers": [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in sent.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    given = iter([{"type": "http.request", "body": data, "more_body": False}])
    answered = asyncio.Event()
    messages: list[Any] = []

    async def receive() -> Any:
        message = next(given, None)
        if message is None:
            await answered.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope, receive, send)
    answered.set()
    start = messages[0]
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], told, b"".join(message.get("body", b"") for message in messages[1:]))


class Listening:
    """The application on a free port of this machine, in a thread."""

    def __init__(self, app: Any):
        self._sock = socket.socket()
        self._sock.bind(("127.0.0.1", 0))
        self.port = int(self._sock.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self._server._serve([self._sock]))

    def __enter__(self) -> Listening:
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)
        return self

    def __exit__(self, *args: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        with suppress(OSError):
            self._sock.close()


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run some coroutine to its end."""

    async def all_of_it() -> Any:
        return await work()

    return asyncio.run(all_of_it())


def specialist_app(folder: Path) -> Any:
    """The application on a model that does not talk, called tiny."""
    engine, mute = specialist(find(ModelConfig(path=str(folder), dtype="float32")), "cpu", 4)
    voices = Voices(engine, ("tiny", Voice(mute)), {}, lambda path: Voice(mute))
    return build(engine, voices, ServerConfig(), SamplingConfig())[0]


def post(app: Any, path: str, **body: Any) -> Reply:
    """What tiny answers."""
    return run(lambda: ask(app, "POST", path, {"model": "tiny", **body}))
