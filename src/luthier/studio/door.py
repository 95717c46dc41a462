"""Who may open the pages: browsers that call the Studio by its own name, from its own pages, and with its key.

A page of another site can make a browser send requests here.  So the Host header must be a name of ours (a foreign
name that was made to point to this machine is not), and an Origin, if there is one, must be the page's own.
"""

from __future__ import annotations

import asyncio
import html
import secrets
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from luthier.serve.fence import App, Receive, Scope, Send, host_name
from luthier.serve.keys import Keys

COOKIE = "luthier_studio"
SIGN_IN = "/sign-in"
_WRONG = 0.5
"""Seconds that a wrong key takes, so that many cannot be tried."""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
"""Nothing is fetched from elsewhere.  NiceGUI's pages are scripts in the page, compiled in the browser."""
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Door:
    """Wraps the application.

    Args:
        hosts: names in the Host header that are let in; None lets all in.
    """

    def __init__(self, app: App, keys: Keys, hosts: frozenset[str] | None):
        self.app, self._keys, self._hosts = app, keys, hosts
        self._guests: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(headers)
        if refused is None and self._keys.needed and not self._knows(headers):
            await self._ask(scope, receive, send)
        elif refused is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "http":
            await _answer(send, 403, refused)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refused(self, headers: MutableMapping[bytes, str]) -> str | None:
        host = headers.get(b"host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            return "The Studio does not go by the name in the Host header; --allowed_hosts names others."
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "This was sent by a page of another site."
        return None

    def _knows(self, headers: MutableMapping[bytes, str]) -> bool:
        scheme, _, sent = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._keys.find(sent.strip()) is not None:
            return True
        try:
            cookie = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and any(secrets.compare_digest(cookie.value, guest) for guest in self._guests)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page that asks for the key, and the answer to it."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["path"] != SIGN_IN or scope["method"] != "POST":
            await _answer(send, 401, _page(""), kind="text/html")
            return
        sent = parse_qs((await _body(receive)).decode("utf-8", "replace")).get("key", [""])[0].strip()
        if self._keys.find(sent) is None:
            await asyncio.sleep(_WRONG)
            await _answer(send, 401, _page("This key is not known. / 密钥不对。"), kind="text/html")
            return
        guest = secrets.token_urlsafe(32)
        self._guests.add(guest)
        cookie = f"{COOKIE}={guest}; Path=/; HttpOnly; SameSite=Strict"
        await _answer(send, 303, "", extra=((b"location", b"/"), (b"set-cookie", cookie.encode())))


def _with_headers(send: Send) -> Send:
    """Headers of ours on every answer that has not brought its own."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            message["headers"] = [*given, *(header for header in _HEADERS if header[0] not in names)]
        await send(message)

    return sent


async def _body(receive: Receive, most: int = 4096) -> bytes:
    body = b""
    while len(body) <= most:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body[:most]


async def _answer(
    send: Send, status: int, text: str, kind: str = "text/plain", extra: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    body = text.encode()
    headers = [(b"content-type", f"{kind}; charset=utf-8".encode()), (b"content-length", str(len(body)).encode())]
    start: MutableMapping[str, Any] = {"type": "http.response.start", "status": status, "headers": [*headers, *extra]}
    await _with_headers(send)(start)
    await send({"type": "http.response.body", "body": body})


def _page(said: str) -> str:
    return _PAGE.replace("{said}", html.escape(said))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Luthier Studio</title>
<style>
:root { color-scheme: light dark; font: 16px/1.6 system-ui, "Noto Sans CJK SC", sans-serif; }
form { max-width: 22rem; margin: 20vh auto; padding: 0 1rem; display: grid; gap: .8rem; }
h1 { font-size: 1.3rem; margin: 0; }
input, button { font: inherit; padding: .5rem .7rem; border-radius: .4rem; border: 1px solid #888; }
p { margin: 0; min-height: 1.6em; }
</style>
</head>
<body>
<form method="post" action="/sign-in">
<h1>Luthier Studio</h1>
<label for="key">Key / 密钥</label>
<input id="key" name="key" type="password" autocomplete="current-password" autofocus required>
<button>Open / 进入</button>
<p role="alert">{said}</p>
</form>
</body>
</html>
"""
