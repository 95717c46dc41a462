"""Other sites, other names and other people stay outside."""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest

from luthier.serve.keys import SCOPES, Key, Keys, allowed_hosts
from luthier.studio import door
from luthier.studio.door import COOKIE, Door

KEY = "open-sesame"


async def inner(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"inside"})


def guarded(key: str | None = None, host: str = "127.0.0.1") -> Door:
    keys = [Key(hashlib.sha256(key.encode()).digest(), frozenset(SCOPES), "")] if key else []
    return Door(inner, Keys(keys), allowed_hosts(host, ()))


def client(application: Door, base: str = "http://127.0.0.1:8080") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application)  # pyright: ignore[reportArgumentType]
    return httpx.AsyncClient(transport=transport, base_url=base)


def run(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


@pytest.mark.parametrize(
    ("base", "headers", "status"),
    [
        ("http://127.0.0.1:8080", {}, 200),
        ("http://localhost:8080", {}, 200),
        ("http://[::1]:8080", {}, 200),
        ("http://evil.example:8080", {}, 403),
        ("http://127.0.0.1.evil.example", {}, 403),
        ("http://127.0.0.1:8080", {"Origin": "http://127.0.0.1:8080"}, 200),
        ("http://127.0.0.1:8080", {"Origin": "http://127.0.0.1:9999"}, 403),
        ("http://127.0.0.1:8080", {"Origin": "https://evil.example"}, 403),
        ("http://127.0.0.1:8080", {"Origin": "null"}, 403),
        ("http://localhost:8080", {"Origin": "http://127.0.0.1:8080"}, 403),
    ],
)
def test_hosts_and_origins(base: str, headers: dict[str, str], status: int) -> None:
    async def ask() -> httpx.Response:
        async with client(guarded(), base) as browser:
            return await browser.get("/", headers=headers)

    answer = run(ask())
    assert answer.status_code == status
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert ("inside" in answer.text) == (status == 200)


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ([(b"host", b"127.0.0.1:8080"), (b"origin", b"http://127.0.0.1:8080")], "websocket.accept"),
        ([(b"host", b"127.0.0.1:8080"), (b"origin", b"http://evil.example")], "websocket.close"),
        ([(b"host", b"evil.example"), (b"origin", b"http://evil.example")], "websocket.close"),
    ],
)
def test_the_same_holds_for_the_socket_that_drives_the_pages(headers: list[tuple[bytes, bytes]], kind: str) -> None:
    assert socket_answer(guarded(), headers) == kind


def test_the_socket_needs_the_key_too() -> None:
    headers = [(b"host", b"127.0.0.1:8080"), (b"origin", b"http://127.0.0.1:8080")]
    assert socket_answer(guarded(KEY), headers) == "websocket.close"
    assert socket_answer(guarded(KEY), [*headers, (b"cookie", b"luthier_studio=guess")]) == "websocket.close"


def socket_answer(application: Door, headers: list[tuple[bytes, bytes]]) -> str:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    run(application({"type": "websocket", "path": "/", "headers": headers}, receive, send))
    return sent[0]["type"]


def test_a_key_is_given_once_and_kept_in_a_cookie_that_scripts_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_WRONG", 0.0)

    async def visit() -> None:
        async with client(guarded(KEY)) as browser:
            asked = await browser.get("/")
            assert asked.status_code == 401 and "password" in asked.text and "inside" not in asked.text
            wrong = await browser.post("/sign-in", data={"key": "guess"})
            assert wrong.status_code == 401 and COOKIE not in browser.cookies
            let_in = await browser.post("/sign-in", data={"key": KEY})
            assert let_in.status_code == 303
            assert "HttpOnly" in let_in.headers["set-cookie"] and "SameSite=Strict" in let_in.headers["set-cookie"]
            assert KEY not in let_in.headers["set-cookie"]
            assert (await browser.get("/")).text == "inside"
        async with client(guarded(KEY)) as program:
            assert (await program.get("/", headers={"Authorization": f"Bearer {KEY}"})).text == "inside"
            assert (await program.get("/", headers={"Authorization": "Bearer guess"})).status_code == 401

    run(visit())


def test_another_site_cannot_send_the_key_form() -> None:
    async def visit() -> int:
        async with client(guarded(KEY)) as browser:
            sent = await browser.post("/sign-in", data={"key": KEY}, headers={"Origin": "http://evil.example"})
            return sent.status_code

    assert run(visit()) == 403


def test_a_public_studio_may_be_called_anything_but_not_from_elsewhere() -> None:
    async def visit(origin: str) -> int:
        async with client(guarded(KEY, "0.0.0.0"), "http://lab.example:8080") as browser:
            headers = {"Origin": origin, "Authorization": f"Bearer {KEY}"}
            return (await browser.get("/", headers=headers)).status_code

    assert run(visit("http://lab.example:8080")) == 200
    assert run(visit("http://evil.example")) == 403
