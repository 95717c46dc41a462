"""Refusals and failures in the shape of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from luthier.base.errors import LuthierError
from luthier.base.records import BadRow

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(eq=False)  # not frozen: Python writes tracebacks into exceptions
class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: what is wrong and what to do.
        code: stable name.
        param: the field of the request it is about.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def body(self) -> dict[str, object]:
        """What is sent."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """The body as JSON."""
        return orjson.dumps(self.body())


def refused(error: LuthierError, param: str | None = None) -> Refusal:
    """What the client did wrong, as Luthier's other rooms say it."""
    return Refusal(400, str(error), error.code, param)


def bad_row(error: BadRow) -> Refusal:
    """A message or tool that cannot be used."""
    fault = error.fault
    return Refusal(400, f"{fault.path or 'messages'}: {fault.message}", fault.code, fault.path or "messages")


def not_found(model: str) -> Refusal:
    """There is no such model."""
    return Refusal(404, f"there is no model {model!r}; GET /v1/models lists them", "model_not_found", "model")
