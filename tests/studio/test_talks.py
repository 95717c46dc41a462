"""Models that talk are processes: they are loaded once, say why they cannot be, and go when they are told to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from luthier.base.errors import ConfigError, RunError
from luthier.studio import talks
from luthier.studio.talks import Sampling, Talks

SERVER = """
import http.server, json, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != "Bearer " + os.environ["LUTHIER_API_KEY"]:
            self.send_response(401); self.end_headers(); self.wfile.write(b'{"error": {"message": "no key"}}'); return
        said = body["messages"][-1]["content"]
        if said == "too long":
            self.send_response(400); self.end_headers(); self.wfile.write(b'{"error": {"message": "too long"}}'); return
        self.send_response(200); self.end_headers()
        for piece in [body["model"], " hears ", said, " at ", str(body["temperature"])]:
            self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": {"content": piece}}]}).encode() + b"\\n\\n")
        if said == "break":
            self.wfile.write(b'data: {"error": {"message": "out of memory"}}\\n\\n')
        self.wfile.write(b"data: [DONE]\\n\\n")
    def log_message(self, *words): ...
if "bad" in sys.argv:
    print(json.dumps({"type": "error", "what": "no such model", "where": "bad", "fix": None})); sys.exit(2)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
url = f"http://127.0.0.1:{server.server_port}/v1"
print(json.dumps({"type": "result", "url": url, "models": ["violin"]}), flush=True)
server.serve_forever()
"""


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in the place of `luthier deploy`."""
    monkeypatch.setattr(talks, "LUTHIER", (sys.executable, "-c", SERVER))


def with_talks(work: Callable[[Talks], Coroutine[Any, Any, None]], root: Path) -> None:
    async def do() -> None:
        opened = Talks(root)
        try:
            await work(opened)
        finally:
            await opened.close()

    asyncio.run(do())


async def said(talk: talks.Talk, text: str) -> list[str]:
    pieces: list[str] = []
    async for piece in talk.answer([{"role": "user", "content": text}], Sampling(temperature=0.5)):
        pieces.append(piece)
    return pieces


def test_a_model_is_loaded_once_answers_in_pieces_and_is_unloaded(tmp_path: Path) -> None:
    async def work(opened: Talks) -> None:
        talk = await opened.open("nano", None)
        assert await said(talk, "me") == ["violin", " hears ", "me", " at ", "0.5"]
        again = await opened.open("nano", None)
        assert again is talk and [loaded.named for loaded in opened.loaded] == ["nano"]
        with pytest.raises(RunError, match="too long"):
            await said(talk, "too long")
        with pytest.raises(RunError, match="out of memory"):
            await said(talk, "break")
        await opened.close("nano")
        assert opened.loaded == [] and talk.pid is None
        with pytest.raises(RunError, match="gone"):
            await said(talk, "me")

    with_talks(work, tmp_path)


def test_why_a_model_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    async def work(opened: Talks) -> None:
        with pytest.raises(RunError, match="no such model"):
            await opened.open("bad", None)
        assert opened.loaded == []

    with_talks(work, tmp_path)


def test_only_a_few_are_loaded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talks, "MOST", 1)

    async def work(opened: Talks) -> None:
        await opened.open("one", None)
        with pytest.raises(ConfigError, match="loaded already"):
            await opened.open("two", None)

    with_talks(work, tmp_path)
