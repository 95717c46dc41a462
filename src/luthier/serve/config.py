"""Settings of the server."""

from __future__ import annotations

from pydantic import Field

from luthier.base.config import Config, Named


class ServerConfig(Config):
    """Where the server listens, who may ask, and how much."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but this machine's own (127.0.0.1, ::1, localhost) needs a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 takes a free one."""
    api_key: Named | None = None
    """Key that clients must send. Better in $LUTHIER_API_KEY, where other users of the machine do not see it."""
    api_keys: Named | None = None
    """File of keys, one a line: the key's SHA-256 in hex, then its scopes (use, admin, metrics), then a name."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that clients may call this server by, without the port. Unset: this machine's own when listening there,
    any when a key is needed."""
    served_model_name: Named | None = None
    """Name of the base model for clients. Unset: the last part of its path."""
    queue: int = Field(default=32, ge=0)
    """Requests that may wait; more are told to come back (429)."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that an answer may take, waiting included."""
    drain_timeout: float = Field(default=60.0, ge=0)
    """Seconds that answers under way get when the server is asked to stop."""
    max_body: int = Field(default=2 * 2**20, ge=1024)
    """Most bytes of a request."""
    reasoning: bool = True
    """Tell what a model thinks between <think> and </think> apart from its answer, as reasoning_content."""
    log_requests: bool = False
    """One line a request on stderr: its id, path, status, tokens and seconds; never what was said."""
