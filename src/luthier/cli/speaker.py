"""A model with its adapters, and how each of them is spoken to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.base.config import nearest
from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Json, Message
from luthier.generate.config import SamplingConfig
from luthier.generate.continuous import Continuous
from luthier.generate.request import Form, Request
from luthier.run.opening import Manner
from luthier.serve.blocking import Blocking

BASE = "base"
"""What the model is called that has no adapter of a name on it."""


class Speaker:
    """Makes requests of conversations.

    Args:
        base: how the model without a named adapter is spoken to.
        system: goes before the system messages that models were trained with; "" is none at all.
        form: what answers must look like.

    Raises:
        ConfigError: the form is wrong, or not supported.
        MissingExtra: llguidance, which holds answers to a form, is not installed.
    """

    def __init__(
        self,
        generator: Continuous | Blocking,
        base: Manner,
        sampling: SamplingConfig,
        system: str | None,
        form: Form | None,
    ):
        if form is not None and isinstance(generator, Continuous):  # before the first question instead of at each
            try:
                generator.work.forms.matcher(form)
            except DataError as error:
                where = {"json": "--json_schema", "regex": "--regex"}.get(form.kind)
                raise ConfigError(error.what, where=where, fix=error.fix, code=error.code) from error
        self.generator, self.sampling = generator, sampling
        self._system, self._form = system, form
        self._manners: dict[str, Manner] = {BASE: base}
        self.chosen = BASE

    @property
    def names(self) -> list[str]:
        """Who can be chosen."""
        return list(self._manners)

    def add(self, name: str, manner: Manner) -> None:
        """Load an adapter under a name.

        Raises:
            ConfigError: this model takes no adapters side by side, or not this one.
        """
        where = f"--adapters {name}=..."
        if name == BASE:
            raise ConfigError(f"{BASE!r} is the model itself", where=where)
        if isinstance(self.generator, Continuous):
            batching = self.generator.batching
            if batching is None:
                raise ConfigError("this model takes no adapters side by side", where=where)
            batching.adapters[name] = self.generator.call(lambda: batching.several.read(manner.folders)).result()
        else:
            self.generator.run(self.generator.engine.add_adapter(name, manner.folders))
        self._manners[name] = manner

    def choose(self, name: str) -> None:
        """Let this one answer from now on.  Raises ConfigError: there is none of the name."""
        self._manner(name)
        self.chosen = name

    def system(self, name: str | None = None) -> str | None:
        """The system message in force."""
        return (self._manner(name).system if self._system is None else self._system) or None

    def request(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Json]] = (),
        *,
        name: str | None = None,
        seed: int = 0,
    ) -> Request:
        """The request for the next answer, by the chosen model or the one of this name.

        Args:
            seed: added to the seed, so that equal questions get different answers where there is a choice.

        Raises:
            DataError: the messages cannot be rendered.
        """
        prompt = tuple(self._manner(name).renderer.prompt(messages, tools))
        sampling = self.sampling.model_copy(update={"seed": self.sampling.seed + seed})
        name = self.chosen if name is None else name
        return Request(prompt, sampling, None if name == BASE else name, self._form)

    def _manner(self, name: str | None) -> Manner:
        name = self.chosen if name is None else name
        if name not in self._manners:
            near = nearest(name, self._manners)
            fix = f"Did you mean {near!r}?" if near else f"There are: {', '.join(self.names)}"
            raise ConfigError(f"no adapter is called {name!r}", where="--adapter", code="no_adapter", fix=fix)
        return self._manners[name]
