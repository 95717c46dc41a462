"""Settings of the Studio."""

from __future__ import annotations

from pydantic import Field

from luthier.base.config import Config, Named


class StudioConfig(Config):
    """Where the pages are, who may open them, and what they may read."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but this machine's own (127.0.0.1, ::1, localhost) needs a key."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port; 0 takes a free one."""
    root: tuple[Named, ...] = Field(default=(".",), min_length=1)
    """Folders that the pages may read: runs, data, models. What they write goes into the first one."""
    api_key: Named | None = None
    """Key that a browser must give once. Better in $LUTHIER_API_KEY, where other users of the machine do not see it."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that browsers may call the Studio by, without the port. Unset: this machine's own when listening there,
    any when a key is needed."""
