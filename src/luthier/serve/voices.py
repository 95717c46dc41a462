"""The models that clients can name: the base, and the adapters that are loaded on it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from luthier.base.errors import ConfigError
from luthier.base.records import Text, Where
from luthier.data.render import Renderer
from luthier.serve.engines import Engine
from luthier.serve.failures import Refusal, not_found
from luthier.serve.tools import CallForm, call_form

_WHERE = Where("request", 1)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


@dataclass(frozen=True)
class Mute:
    """How a model that does not talk reads texts."""

    tokenizer: PreTrainedTokenizerFast
    ids: Callable[[str], Sequence[int]]
    does: str
    """The end of "this model ..."."""


@dataclass(frozen=True)
class Voice:
    """One model as clients see it: how it is spoken to, and which adapter answers."""

    speaks: Renderer | Mute
    system: str | None = None
    folders: tuple[str, ...] = ()
    """the adapter, or several trained over one another; none for the base"""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def renderer(self) -> Renderer:
        """How conversations are written.  Raises Refusal: 400 where the model does not talk."""
        if isinstance(self.speaks, Mute):
            raise Refusal(400, f"this model {self.speaks.does} and does not talk", "not_supported", "model")
        return self.speaks

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """What makes tokens of texts."""
        return self.speaks.tokenizer

    def ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text from its start, without an end.  Control tokens in it are text."""
        if isinstance(self.speaks, Mute):
            return tuple(self.speaks.ids(text))
        return tuple(self.speaks.text(Text(text, _WHERE)).ids[:-1].tolist())

    def thinking(self, think: bool) -> Renderer:
        """How conversations are written where thinking is switched on or off, as far as the template knows it.

        Raises:
            Refusal: 400 where the model does not talk.
        """
        if think not in self._variants:
            self._variants[think] = self.renderer.having(enable_thinking=think, thinking=think)
        return self._variants[think]

    @cached_property
    def _variants(self) -> dict[bool, Renderer]:
        return {}

    @cached_property
    def calls(self) -> CallForm | None:
        """How it writes tool calls."""
        return call_form(self.renderer)


class Voices:
    """Everything that can be named.

    Args:
        base: name and voice of the base model.
        registered: folders of adapters, by the names that clients may load them by.  A path never comes from a client.
        open_adapter: reads how an adapter is spoken to.
    """

    def __init__(
        self,
        engine: Engine,
        base: tuple[str, Voice],
        registered: Mapping[str, Path],
        open_adapter: Callable[[Path], Voice],
    ):
        self._engine, self._open = engine, open_adapter
        self.base, self._registered = base[0], dict(registered)
        self._loaded = dict([base])
        for name in registered:
            if not _NAME.fullmatch(name) or ".." in name or name == self.base:
                raise ConfigError("cannot be the name of an adapter", where=repr(name), code="bad_adapter_name")

    def find(self, name: str) -> tuple[Voice, str | None]:
        """A model by name, and the engine's name of its adapter.

        Raises:
            Refusal: 404.
        """
        voice = self._loaded.get(name)
        if voice is None:
            raise not_found(name)
        return voice, name if voice.folders and name != self.base else None

    async def load(self, name: str) -> None:
        """Load a registered adapter; nothing when it is loaded.

        Raises:
            Refusal: 404 when there is no such name.
            LuthierError: it cannot be used.
        """
        if name not in self._registered:
            raise Refusal(404, f"no adapter is registered as {name!r}", "adapter_not_registered", "name")
        if name not in self._loaded:
            voice = self._open(self._registered[name])
            await self._engine.add_adapter(name, voice.folders)
            self._loaded[name] = voice

    async def unload(self, name: str) -> None:
        """Take a loaded adapter out.  Raises Refusal: 404."""
        if name == self.base or name not in self._loaded:
            raise not_found(name)
        del self._loaded[name]
        await self._engine.remove_adapter(name)

    def listed(self) -> list[dict[str, object]]:
        """The models that can be asked, as /v1/models tells them."""
        return [
            {
                "id": name,
                "object": "model",
                "created": voice.created,
                "owned_by": "luthier",
                "parent": None if name == self.base else self.base,
                "max_model_len": self._engine.max_length,
            }
            for name, voice in self._loaded.items()
        ]

    def adapters(self) -> list[dict[str, object]]:
        """All registered adapters."""
        return [{"name": name, "loaded": name in self._loaded} for name in self._registered]
