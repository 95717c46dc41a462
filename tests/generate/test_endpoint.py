"""The client of OpenAI-compatible endpoints, against a server in this process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from luthier.base.endpoint import EndpointConfig
from luthier.base.errors import ConfigError, RunError
from luthier.generate.endpoint import Endpoint
from luthier.generate.schema import mismatch

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["a", "b"]}},
    "required": ["label"],
    "additionalProperties": False,
}


class Served:
    """A server whose answers a test decides; it remembers what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[int, dict[str, Any]], tuple[int, Any, dict[str, str]]] = lambda n, body: (200, "ok", {})
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def start(self) -> None:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with served.lock:
                    number = len(served.bodies)
                    served.bodies.append({"path": self.path, **body})
                    served.headers.append(dict(self.headers))
                status, answer, headers = served.answer(number, body)
                if isinstance(answer, str):
                    answer = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
                data = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Served()
    made.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def _endpoint(served: Served, tmp_path: Path, **settings: Any) -> Endpoint:
    config = EndpointConfig(base_url=served.url, model="m", **settings)
    return Endpoint(config, tmp_path / "answers.sqlite", patience=0.01)


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_answers_come_in_order_and_are_kept(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        text = body["messages"][0]["content"]
        time.sleep(0.02 * (text == "0"))
        return 200, f" re {text} {number if text == 'same' else ''}", {}

    served.answer = answer
    monkeypatch.setenv("MY_KEY", "sk-secret")
    endpoint = _endpoint(served, tmp_path, api_key_env="MY_KEY", temperature=0.5)
    texts = [str(n) for n in range(10)]
    assert endpoint.ask([_chat(text) for text in texts]) == [f"re {text}" for text in texts]
    assert len(served.bodies) == 10 and served.bodies[0]["path"] == "/v1/chat/completions"
    assert {header["Authorization"] for header in served.headers} == {"Bearer sk-secret"}
    assert (served.bodies[0]["model"], served.bodies[0]["temperature"]) == ("m", 0.5)
    assert "response_format" not in served.bodies[0]
    assert endpoint.ask([_chat("3"), _chat("10")]) == ["re 3", "re 10"]
    assert len(served.bodies) == 11
    twice = endpoint.ask([_chat("same"), _chat("same")])
    assert twice[0] != twice[1] and endpoint.ask([_chat("same"), _chat("same")]) == twice
    assert b"sk-secret" not in (tmp_path / "answers.sqlite").read_bytes()


def test_a_busy_endpoint_is_asked_again(served: Served, tmp_path: Path) -> None:
    answers: list[tuple[int, Any, dict[str, str]]] = [
        (429, {"error": "slow down"}, {"Retry-After": "0.01"}),
        (503, {}, {}),
        (200, {"choices": []}, {}),
        (200, "", {}),
        (200, "fine", {}),
    ]
    served.answer = lambda number, body: answers[number]
    assert _endpoint(served, tmp_path).ask([_chat("q")]) == ["fine"]
    assert len(served.bodies) == 5


def test_answers_must_fit_the_schema(served: Served, tmp_path: Path) -> None:
    answers = ["no json", '{"label": "c"}', '{"label": "b", "why": 1}', '{"label": "b"}']
    served.answer = lambda number, body: (200, answers[number] if number < 4 else "never fits", {})
    endpoint = _endpoint(served, tmp_path)
    assert endpoint.ask([_chat("q")], SCHEMA) == ['{"label": "b"}']
    assert served.bodies[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert endpoint.ask([_chat("other")], SCHEMA) == [""] and len(served.bodies) == 10
    plain = _endpoint(served, tmp_path, json_mode=False, retries=0)
    assert plain.ask([_chat("q")], SCHEMA) == [""] and "response_format" not in served.bodies[-1]


def test_what_was_answered_before_a_failure_is_kept(served: Served, tmp_path: Path) -> None:
    served.answer = lambda number, body: (
        (401, {"error": "bad key"}, {}) if body["messages"][0]["content"] == "3" else (200, "ok", {})
    )
    endpoint = _endpoint(served, tmp_path, concurrency=1)
    with pytest.raises(RunError, match=r"bad key.*OPENAI_API_KEY") as refused:
        endpoint.ask([_chat(str(n)) for n in range(4)])
    assert refused.value.code == "endpoint_failed" and len(served.bodies) == 4
    served.answer = lambda number, body: (200, "late", {})
    assert endpoint.ask([_chat(str(n)) for n in range(4)]) == ["ok", "ok", "ok", "late"]
    assert len(served.bodies) == 5


def test_nobody_there(tmp_path: Path) -> None:
    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m", retries=1)
    with pytest.raises(RunError, match="no answer after 2 tries: cannot be reached"):
        Endpoint(config, tmp_path / "a.sqlite", patience=0.01).ask([_chat("q")])


def test_an_address_that_never_answered_is_given_up_early(tmp_path: Path) -> None:
    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m", retries=20)
    with pytest.raises(RunError, match=r"no answer after 3 tries: cannot be reached.*Look at the address"):
        Endpoint(config, tmp_path / "a.sqlite", patience=0.01).ask([_chat("q")])


def test_one_that_has_answered_may_be_away_for_longer(served: Served, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        if 0 < number < 5:
            raise ConnectionAbortedError  # the connection ends without an answer
        return 200, "ok", {}

    served.answer = answer
    endpoint = _endpoint(served, tmp_path)
    served.server.handle_error = lambda *_: None  # type: ignore[method-assign]
    assert endpoint.ask([_chat("a")]) == ["ok"]
    assert endpoint.ask([_chat("b")]) == ["ok"] and len(served.bodies) == 6


def test_the_pace_is_kept(served: Served, tmp_path: Path) -> None:
    endpoint = _endpoint(served, tmp_path, requests_per_minute=1200)
    start = time.monotonic()
    endpoint.ask([_chat(str(n)) for n in range(8)])
    assert time.monotonic() - start >= 7 * 0.05


def test_embeddings(served: Served, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        rows = [{"index": n, "embedding": [len(text), 1.0]} for n, text in enumerate(body["input"])]
        return 200, {"data": rows[::-1]}, {}

    served.answer = answer
    texts = ["a" * n for n in range(5)]
    assert _endpoint(served, tmp_path).embed(texts, at_once=2) == [[n, 1.0] for n in range(5)]
    assert len(served.bodies) == 3 and served.bodies[0]["path"] == "/v1/embeddings"


def test_settings_are_checked_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for config in (
        EndpointConfig(model="m"),
        EndpointConfig(base_url="http://x/v1"),
        EndpointConfig(base_url="ftp://x", model="m"),
    ):
        with pytest.raises(ConfigError):
            Endpoint(config, tmp_path / "a.sqlite")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert Endpoint(EndpointConfig(model="m"), tmp_path / "a.sqlite").config.address == "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    ("answer", "schema", "why"),
    [
        ("[1, 2]", {"type": "array", "items": {"type": "integer"}, "minItems": 2}, None),
        ("[1, 2.5]", {"type": "array", "items": {"type": "integer"}}, "answer[1] should be integer"),
        ("[1]", {"type": "array", "maxItems": 0}, "answer has 1 items"),
        ("true", {"type": "integer"}, "answer should be integer"),
        ("0.5", {"type": "number", "minimum": 0, "maximum": 1}, None),
        ("1.5", {"type": "number", "maximum": 1}, "answer is above 1"),
        ('""', {"type": "string", "minLength": 1}, "answer is below 1"),
        ("null", {"type": ["string", "null"]}, None),
        ("3", {"anyOf": [{"type": "string"}, {"const": 3}]}, None),
        ("4", {"anyOf": [{"type": "string"}, {"const": 3}]}, "answer fits none of the options"),
        ('{"a": {"b": 1}}', {"properties": {"a": {"required": ["c"]}}}, "answer.a has no 'c'"),
    ],
)
def test_schemas(answer: str, schema: dict[str, Any], why: str | None) -> None:
    assert mismatch(answer, schema) == why
