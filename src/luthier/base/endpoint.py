"""Where an OpenAI-compatible endpoint is, and how it may be asked."""

from __future__ import annotations

import os

from pydantic import Field

from luthier.base.config import Config


class EndpointConfig(Config):
    """An OpenAI-compatible endpoint.  Its key comes from the environment only."""

    base_url: str | None = None
    """Address with the version, like http://127.0.0.1:8000/v1. Unset: $OPENAI_BASE_URL."""
    model: str = ""
    """Name of the model to ask."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; an endpoint without keys needs none."""
    temperature: float = Field(default=0.0, ge=0)
    """0 always takes the likeliest token; higher is more varied."""
    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of an answer."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Questions under way at a time."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Ask no more often than this."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds to wait for an answer."""
    retries: int = Field(default=5, ge=0)
    """Further tries when the endpoint is busy, fails or cannot be reached, or an answer does not fit its schema."""
    json_mode: bool = True
    """Send the schema of the answer (response_format). Off, for servers that do not know it: only check."""
    answers: str | None = None
    """File of answers kept. Unset: under $LUTHIER_CACHE or ~/.cache/luthier; what was answered is never asked again."""

    @property
    def address(self) -> str | None:
        """The base address, from the setting or the environment."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or None

    def require(self) -> None:
        """Make sure that there is something to ask.

        Raises:
            ValueError: address or model is missing.
        """
        if not self.address:
            raise ValueError("an endpoint is needed: --base_url http://HOST:PORT/v1, or $OPENAI_BASE_URL")
        if not self.address.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, not {self.address!r}")
        if not self.model:
            raise ValueError("the endpoint's model is needed: --endpoint.model NAME")
