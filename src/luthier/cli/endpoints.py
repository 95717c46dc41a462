"""An OpenAI-compatible endpoint for the verbs of the workshop, opened when it is first asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.base.endpoint import EndpointConfig
from luthier.data.config import DataConfig
from luthier.data.textfile import cache_root
from luthier.prepare.config import VerbConfig


def ask(config: VerbConfig) -> Callable[..., list[str]]:
    """Answers to chats; see `luthier.generate.endpoint.Endpoint.ask`."""
    settings: EndpointConfig = config.endpoint  # pyright: ignore[reportAttributeAccessIssue]

    def answer(chats: Sequence[Sequence[Mapping[str, str]]], schema: Mapping[str, Any] | None = None) -> list[str]:
        from luthier.generate.endpoint import Endpoint

        kept = Path(settings.answers).expanduser() if settings.answers else cache_root(DataConfig()) / "answers.sqlite"
        return Endpoint(settings, kept).ask(chats, schema)

    return answer
