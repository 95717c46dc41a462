"""What a client is told when a request fails, whatever failed."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException
from starlette.responses import Response

from luthier.base.errors import LuthierError
from luthier.serve.engines import EngineFailed
from luthier.serve.events import ClientGone
from luthier.serve.failures import Refusal, refused


def tell_errors(app: FastAPI) -> None:
    """Have every error of an application answered in one shape."""
    app.add_exception_handler(HTTPException, _unknown_route)
    app.add_exception_handler(Exception, _bug)
    app.add_exception_handler(ClientGone, _gone)
    for kind in (Refusal, LuthierError, EngineFailed):
        app.add_exception_handler(kind, _refusal)


def as_refusal(error: Exception) -> Refusal:
    """An error that was foreseen as what a client is told."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, LuthierError):
        return refused(error)
    return Refusal(500, f"the engine failed: {error}", "engine_failed")


async def _refusal(request: HttpRequest, error: Exception) -> Response:
    refusal = as_refusal(error)
    return Response(refusal.encoded(), refusal.status, dict(refusal.headers), "application/json")


async def _bug(request: HttpRequest, error: Exception) -> Response:
    """What nobody foresaw; it is raised again afterwards, and `Fence` logs it."""
    message = f"this is a bug in the server; it is logged as {request.state.request_id}"
    return await _refusal(request, Refusal(500, message, "bug"))


async def _gone(request: HttpRequest, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _unknown_route(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    if error.status_code == 405:
        what = Refusal(405, f"{request.method} is not possible on {path}", "method_not_allowed")
    elif error.status_code == 404:
        what = Refusal(404, f"there is nothing at {path}", "unknown_route")
    else:
        what = Refusal(error.status_code, str(error.detail), "invalid_request")
    return await _refusal(request, what)
