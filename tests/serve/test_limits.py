"""What a server must bear: nonsense, crowds, and clients who leave (S1 to S3 of the reliability list)."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import psutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Kitchen, Listening, Reply, ask, run

from luthier.serve.wire import ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest, ScoreRequest

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 1}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "a", "max_tokens": 1},
    "/v1/embeddings": {"model": "tiny", "input": ["a"]},
    "/v1/rerank": {"model": "tiny", "query": "a", "documents": ["b", "c"]},
    "/v1/score": {"model": "tiny", "text_1": "a", "text_2": ["b"]},
    "/classify": {"model": "tiny", "input": ["a"]},
    "/v1/tag": {"model": "tiny", "input": ["a"]},
    "/pooling": {"model": "tiny", "input": ["a"]},
    "/tokenize": {"model": "tiny", "prompt": "a"},
    "/detokenize": {"model": "tiny", "tokens": [5, 6]},
    "/v1/adapters": {"name": "nobody"},
}
FIELDS = sorted(
    {
        name
        for kind in (ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest, ScoreRequest)
        for name in kind.model_fields
    }
    - {"model"}
)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**9, -1, 0, 1e308, "\ud800", "<|im_end|>", "tiny", "required", "json_object", "user", "text"])
)
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "function", "name", "text", "tool_calls", "schema", "json_schema", "x"]), inner, max_size=3), max_leaves=6)  # noqa: E501  # fmt: skip


@pytest.fixture(scope="module")
def kitchen(tiny_model_dir: Callable[..., Path]) -> Kitchen:
    return Kitchen(tiny_model_dir("qwen2"))


@pytest.fixture(scope="module")
def app(kitchen: Kitchen) -> Any:
    return kitchen.app()


def is_refusal(reply: Reply) -> None:
    assert 400 <= reply.status < 500, (reply.status, reply.body)
    assert reply.error["code"] and reply.headers["x-request-id"]


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(sorted(VALID)), changes=st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=3))
def test_no_request_is_the_servers_fault(path: str, changes: dict[str, Any], app: Any) -> None:
    body = json.dumps({**VALID[path], "max_tokens": 1, **changes}).encode("utf-8", "surrogatepass")
    if changes.get("max_tokens", 1) != 1 or "max_tokens" not in VALID[path]:
        body = json.dumps({**VALID[path], **changes}).encode("utf-8", "surrogatepass")
    reply = run(lambda: ask(app, "POST", path, body))
    assert reply.status < 500, reply.body
    if reply.status != 200:
        is_refusal(reply)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_that_are_no_request_are_refused(body: bytes, app: Any) -> None:
    is_refusal(run(lambda: ask(app, "POST", "/v1/chat/completions", body)))


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"n": 10**9}, 400, "n:"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "wizard"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]},
            400,
            "reads more than text",
        ),
        ({"messages": [{"role": "user", "content": "number " * 300}]}, 400, "no room for an answer"),
        ({"model": "gpt-9"}, 404, "gpt-9"),
        ({"temprature": 1}, 400, "did you mean 'temperature'"),
        ({"tool_choice": "required"}, 400, "without tools"),
        ({"top_logprobs": 2}, 400, "needs logprobs"),
        ({"response_format": {"type": "json_schema"}}, 400, "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wood"}}}},
            400,
            "schema",
        ),
        ({"guided_regex": "(" * 50}, 400, "regular expression"),
        ({"stop": ""}, 400, "stop"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], status: int, word: str, kitchen: Kitchen) -> None:
    for stream in (False, True):
        reply = run(lambda: ask(kitchen.app(), "POST", "/v1/chat/completions", {**CHAT, **changes, "stream": stream}))  # noqa: B023
        assert reply.status == status and word in reply.error["message"], reply.body


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"max_tokens": 0}, "without echo"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
        ({"echo": True, "logprobs": 21}, "logprobs"),
        ({"echo": True, "logprobs": 1, "prompt": ""}, "1 to"),
        ({"echo": True, "logprobs": 1, "max_tokens": 0, "prompt": "number " * 300}, "the model holds 1 to"),
        ({"echo": True, "prompt": "number " * 300}, "no room for an answer"),
    ],
)
def test_what_is_wrong_with_an_echo_is_named(changes: dict[str, Any], word: str, kitchen: Kitchen) -> None:
    for stream in (False, True):
        body = {"model": "tiny", "prompt": "x", **changes, "stream": stream}
        reply = run(lambda: ask(kitchen.app(), "POST", "/v1/completions", body))  # noqa: B023
        assert reply.status == 400 and word in reply.error["message"], reply.body


@pytest.mark.parametrize(
    ("path", "changes", "param", "said"),
    [
        ("/v1/embeddings", {"input": []}, "input", "at least 1 item"),
        ("/v1/embeddings", {"input": 5}, "input", "valid string"),
        ("/v1/embeddings", {"input": ["a", "b", 5]}, "input[2]", "valid string"),
        ("/v1/embeddings", {"input": [[1, 2], [3, -4]]}, "input[1][1]", "greater than or equal to 0"),
        ("/v1/completions", {"prompt": []}, "prompt", "at least 1 item"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix", "does not support it"),
        ("/v1/rerank", {"query": "q", "documents": ["a", {"txt": "b"}]}, "documents[1]", ""),
        ("/v1/chat/completions", {}, "messages", "required"),
        ("/v1/chat/completions", {**CHAT, "stop": ["a", ""]}, "stop[1]", "at least 1 character"),
        ("/v1/chat/completions", {**CHAT, "response_format": {}}, "response_format.type", "required"),
    ],
)
def test_the_place_of_a_mistake_is_told_as_it_stands_in_the_request(
    path: str, changes: dict[str, Any], param: str, said: str, kitchen: Kitchen
) -> None:
    reply = run(lambda: ask(kitchen.app(), "POST", path, {"model": "tiny", **changes}))
    assert reply.status == 400 and reply.error["param"].startswith(param), reply.body
    assert reply.error["message"].startswith(param) and said in reply.error["message"]
    assert "constrained" not in reply.error["message"] and "list[" not in reply.error["message"]


def test_a_prompt_that_is_too_long_has_the_code_that_clients_know(kitchen: Kitchen) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "number " * 300}]}
    reply = run(lambda: ask(kitchen.app(), "POST", "/v1/chat/completions", body))
    assert reply.status == 400 and reply.error["code"] == "context_length_exceeded"


def test_as_many_texts_are_embedded_as_clients_send_at_once(kitchen: Kitchen) -> None:
    body = {"model": "tiny", "input": ["violin"] * 1000}
    reply = run(lambda: ask(kitchen.app(), "POST", "/v1/embeddings", body))
    assert reply.status == 200 and len(json.loads(reply.body)["data"]) == 1000


def test_large_and_deep_bodies_cost_little(kitchen: Kitchen) -> None:
    app = kitchen.app()
    before = psutil.Process().memory_info().rss
    for body in (b"x" * (10 * 2**20), b"[" * 10**6, b'{"a":' * 10**5):
        reply = run(lambda: ask(app, "POST", "/v1/chat/completions", body))  # noqa: B023
        is_refusal(reply)
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
    assert run(lambda: ask(app, "POST", "/v1/chat/completions", b"x" * (10 * 2**20))).status == 413


def test_memory_stays_the_same_over_many_requests(kitchen: Kitchen) -> None:
    app, process = kitchen.app(), psutil.Process()

    async def some(first: int, count: int) -> None:
        for n in range(first, first + count, 4):
            texts = {m: f"{m} " + "number " * (m % 9) for m in range(n, n + 4)}
            bodies = [
                {**CHAT, "messages": [{"role": "user", "content": text}], "max_tokens": 1 + m % 5}
                for m, text in texts.items()
            ]
            replies = await asyncio.gather(*(ask(app, "POST", "/v1/chat/completions", body) for body in bodies))
            assert all(reply.status == 200 for reply in replies)

    run(lambda: some(0, 100))
    before = process.memory_info().rss
    run(lambda: some(100, 400))
    assert process.memory_info().rss - before < 24 * 2**20


def test_two_hundred_at_once_on_a_queue_of_32(kitchen: Kitchen) -> None:
    app = kitchen.app(queue=32)
    long = {**CHAT, "max_tokens": 20, "temperature": 0}

    async def crowd() -> list[Reply]:
        return list(await asyncio.gather(*(ask(app, "POST", "/v1/chat/completions", long) for _ in range(200))))

    before = psutil.Process().memory_info().rss
    replies = run(crowd)
    served = [reply for reply in replies if reply.status == 200]
    turned_away = [reply for reply in replies if reply.status == 429]
    assert len(served) == 36 and len(turned_away) == 164
    assert all(
        reply.error["code"] == "queue_full" and 1 <= int(reply.headers["retry-after"]) <= 60 for reply in turned_away
    )
    assert len({reply.json["choices"][0]["message"]["content"] for reply in served}) == 1
    assert psutil.Process().memory_info().rss - before < 200 * 2**20
    assert run(lambda: ask(app, "POST", "/v1/chat/completions", long)).status == 200
    metrics = run(lambda: ask(app, "GET", "/metrics")).body.decode()
    assert 'luthier_requests_total{path="/v1/chat/completions",status="429"} 164.0' in metrics
    assert "luthier_refused 164.0" in metrics and "luthier_waiting 0.0" in metrics


@pytest.fixture(scope="module")
def slow(tiny_model_dir: Callable[..., Path]) -> Iterator[tuple[Kitchen, Listening]]:
    """A server whose every step takes a while, so that answers last."""
    kitchen = Kitchen(tiny_model_dir("qwen2", max_position_embeddings=4096, eos_token_id=None), slots=100)
    kitchen.generator.batching.stop_ids = frozenset()  # type: ignore[union-attr]
    kitchen.model.head.register_forward_hook(lambda *_: time.sleep(0.005))
    with Listening(kitchen.app(queue=100)) as listening:
        yield kitchen, listening


@pytest.mark.parametrize("stream", [True, False])
def test_a_hundred_clients_who_leave_free_their_slots(stream: bool, slow: tuple[Kitchen, Listening]) -> None:
    kitchen, listening = slow
    body = json.dumps({**CHAT, "max_tokens": 4000, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", listening.port)) for _ in range(100)]
    for client in clients:
        client.sendall(head + body)
    limit = time.monotonic() + 60
    while kitchen.engine.load().running < 100:
        assert time.monotonic() < limit
        time.sleep(0.02)
    if stream:
        assert all(client.recv(20).startswith(b"HTTP/1.1 200") for client in clients)
    for client in clients:
        client.close()
    left = time.monotonic()
    while kitchen.engine.load() != type(kitchen.engine.load())(0, 0):
        assert time.monotonic() - left < 10
        time.sleep(0.01)
    # A second on an idle machine; tests share theirs.
    assert time.monotonic() - left < 5


def test_a_deadline_ends_an_answer(slow: tuple[Kitchen, Listening]) -> None:
    app = slow[0].app(timeout=0.3)
    long = {**CHAT, "max_tokens": 4000}
    late = run(lambda: ask(app, "POST", "/v1/chat/completions", long))
    assert late.status == 408 and late.error["code"] == "deadline_exceeded"
    streamed = run(lambda: ask(app, "POST", "/v1/chat/completions", {**long, "stream": True}))
    events = streamed.body.decode().split("\n\n")
    assert (
        streamed.status == 200 and '"code":"deadline_exceeded"' in events[-2] and "[DONE]" not in streamed.body.decode()
    )
    limit = time.monotonic() + 10
    while slow[0].engine.load().running:
        assert time.monotonic() < limit


def test_a_broken_engine_is_a_500_and_the_next_answer_works(kitchen: Kitchen) -> None:
    app = kitchen.app()
    handle = kitchen.model.head.register_forward_hook(lambda *_: 1 / 0)
    reply = run(lambda: ask(app, "POST", "/v1/chat/completions", CHAT))
    handle.remove()
    assert reply.status == 500 and reply.error["type"] == "server_error"
    assert run(lambda: ask(app, "POST", "/v1/chat/completions", CHAT)).status == 200
