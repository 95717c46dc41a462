"""Verbs that ask an endpoint, as commands, against a server in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import app


class _Handler(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]] = []
    fail_after = 10_000

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        answer: dict[str, Any] = {"label": "spam" if "win" in body["messages"][-1]["content"] else "ham"}
        answer["confidence"] = 0.8
        if "tasks" in json.dumps(body["response_format"]):
            number = len(self.asked)
            text = f"Describe what happened in the year {1900 + number} in city {number * 31}"
            answer = {"tasks": [{"instruction": text, "input": "", "output": f"Much, {number}."}]}
        data = json.dumps({"choices": [{"message": {"content": json.dumps(answer)}}]}).encode()
        self.send_response(403 if len(self.asked) > self.fail_after else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a server that labels and writes tasks."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_Handler, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_an_interrupted_labelling_goes_on_where_it_stopped(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"{'win' if n % 2 else 'see you'} {n}"} for n in range(10)]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "g.md").write_text("spam advertises; ham does not")
    out = tmp_path / "out.jsonl"
    words = ["data", "label", str(tmp_path / "f.jsonl"), "--labels", "spam", "ham", "--output", str(out)]
    words += ["--guideline", str(tmp_path / "g.md"), "--base_url", url, "--endpoint.model", "m", "--concurrency", "1"]
    monkeypatch.setattr(_Handler, "fail_after", 6)
    assert app.main(words) == 1 and not out.exists()
    monkeypatch.setattr(_Handler, "fail_after", 10_000)
    asked = len(_Handler.asked)
    assert app.main(words) == 0
    assert len(_Handler.asked) == asked + 4  # six were answered before
    made = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    assert made == ["ham", "spam"] * 5


def test_tasks_are_written(url: str, tmp_path: Path) -> None:
    seeds = [{"instruction": f"Say {word} twice please", "output": f"{word} {word}"} for word in ("tree", "sun")]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seeds))
    out = tmp_path / "new.jsonl"
    words = ["data", "synthesize", str(tmp_path / "s.jsonl"), "--rows", "4", "--output", str(out), "--base_url", url]
    assert app.main([*words, "--endpoint.model", "m", "--similarity", "0.95"]) == 0
    assert len(out.read_text().splitlines()) == 4
