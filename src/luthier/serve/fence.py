"""What every request passes before any route: its id, its Host header, its key, its size; and errors in one shape."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from luthier.serve.failures import Refusal
from luthier.serve.keys import Keys

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = ("/health/live", "/health/ready")
"""Answered without a key; they say yes or no and nothing else."""
_SCOPES = {"/metrics": "metrics", "/v1/adapters": "admin"}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Fence:
    """Wraps the application.

    Args:
        hosts: names in the Host header that are let in; None lets all in.
        max_body: most bytes of a request.
        trouble: told of errors that nobody foresaw, as (request id, error).
    """

    def __init__(
        self,
        app: App,
        keys: Keys,
        hosts: frozenset[str] | None,
        max_body: int,
        trouble: Callable[[str, Exception], None],
    ):
        self._app, self._keys, self._hosts = app, keys, hosts
        self._max_body, self._trouble = max_body, trouble

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: no route has one
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        asked_id = headers.get(b"x-request-id", "")
        request_id = asked_id if _ID.fullmatch(asked_id) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, _bounded(receive, headers, self._max_body), send_with_id)
        except Refusal as refusal:
            await answer(refusal, send_with_id)
        except Exception as error:  # the application has answered it
            self._trouble(request_id, error)

    def _check(self, scope: Scope, headers: dict[bytes, str]) -> None:
        if self._hosts is not None and host_name(headers.get(b"host", "")) not in self._hosts:
            raise Refusal(403, "this server does not go by the name in the Host header", "bad_host")
        path: str = scope["path"]
        if path in _OPEN or not self._keys.needed:
            return
        scheme, _, sent = headers.get(b"authorization", "").partition(" ")
        key = self._keys.find(sent.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            why = "a key is needed: Authorization: Bearer KEY" if not sent else "this key is not known"
            raise Refusal(401, why, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        needed = next(
            (scope for start, scope in _SCOPES.items() if path == start or path.startswith(f"{start}/")), "use"
        )
        if needed not in key.scopes:
            raise Refusal(403, f"this key is not for {needed!r}", "missing_scope")


async def answer(refusal: Refusal, send: Send) -> None:
    """Send a refusal."""
    body = refusal.encoded()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def host_name(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if re.search(r":\d*$", header) else header.lower()


def _bounded(receive: Receive, headers: dict[bytes, str], most: int) -> Receive:
    """`receive` that refuses more than `most` bytes, as announced or as they come."""
    too_large = Refusal(413, f"a request has at most {most:,} bytes", "body_too_large")
    announced = headers.get(b"content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        raise too_large
    size = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise too_large
        return message

    return counted
