"""Opening a model to use it: alone, with the adapters it was trained to, or with several to choose from by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.data.render import Renderer
from luthier.model import methods
from luthier.model.config import ModelConfig
from luthier.model.device import device_of
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.run.result import Usable, find


@dataclass(frozen=True, slots=True)
class Manner:
    """How a model is spoken to, and the adapters that make it what it is."""

    renderer: Renderer
    system: str | None
    folders: tuple[str, ...]
    """adapters, each trained over those before it"""


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded model, and how it is spoken to."""

    model: Model
    manner: Manner
    config: ModelConfig
    """What was opened, with the base that an adapter named."""

    def with_adapter(self, folder: Path | str) -> Manner:
        """How the model is spoken to with an adapter, or a run's, on it.  Nothing is loaded.

        Raises:
            ConfigError: the folder is no adapter or run.
        """
        return manner_with(self.config, folder)


def open_model(config: ModelConfig, device: str, say: Callable[[str], None]) -> Opened:
    """Load a model to use it; what an adapter's run says about base, template and system message comes with it.

    Raises:
        ConfigError, ModelError: it cannot be found or loaded.
    """
    usable, there = find(config), device_of(device)
    if usable.model.quant.on and config.quant.method is None:
        bits = usable.model.quant.bits
        say(f"The base is held in {bits} bits, as in training; --quant_method none leaves it as it is")
    renderer = _renderer(usable)
    model = load_model(usable.model, there, tokenizer=renderer.tokenizer, trained=False)
    methods.attach(model, usable.model.adapters)
    manner = Manner(renderer, usable.system, usable.model.adapters)
    return Opened(model, manner, usable.model.model_copy(update={"adapters": ()}))


def manner_of(config: ModelConfig) -> tuple[Manner, ModelConfig]:
    """How a model is spoken to, and what it is with the base that an adapter named; nothing is loaded.

    Raises:
        ConfigError, ModelError: it cannot be found.
    """
    usable = find(config)
    return Manner(_renderer(usable), usable.system, usable.model.adapters), usable.model


def manner_with(config: ModelConfig, folder: Path | str) -> Manner:
    """How a base is spoken to with an adapter, or a run's, on it; nothing is loaded.

    Raises:
        ConfigError: the folder is no adapter or run.
    """
    found = find(config.model_copy(update={"adapters": (str(folder),)}))
    alone = find(ModelConfig(adapters=(str(folder),))).model  # with the earlier adapters that its run names
    folders = alone.adapters if alone.adapters[-1:] == found.model.adapters[-1:] else found.model.adapters
    return Manner(_renderer(found), found.system, folders)


def split_named(config: ModelConfig) -> tuple[ModelConfig, dict[str, str]]:
    """The model without the adapters that were given as `name=folder`, and those by name.

    Without a model of its own the base is the one that the first of them was trained on.

    Raises:
        ConfigError: a name comes twice, or some adapters have names and some not.
    """
    named: dict[str, str] = {}
    for adapter in config.adapters:
        name, equals, folder = adapter.partition("=")
        if not equals or Path(adapter).expanduser().exists():
            continue
        if not name or not folder or name in named:
            raise ConfigError("an adapter is given as name=folder, each name once", where=f"--adapters {adapter}")
        named[name] = folder
    if not named:
        return config, {}
    if len(named) != len(config.adapters):
        raise ConfigError(
            "some adapters have names and some not", where="--adapters", fix="Write each as name=folder, or merge first"
        )
    config = config.model_copy(update={"adapters": ()})
    if not config.path:
        first = find(config.model_copy(update={"adapters": (next(iter(named.values())),)})).model
        kept = {"path": first.path, "hub": first.hub, "revision": first.revision, "quant": first.quant}
        config = config.model_copy(update=kept)
    return config, named


def _renderer(usable: Usable) -> Renderer:
    tokenizer = load_tokenizer(usable.tokenizer)
    return Renderer(tokenizer, template=usable.model.template, template_args=usable.model.template_args)


def manners(opened: Opened, named: Mapping[str, str]) -> dict[str, Manner]:
    """How each named adapter is spoken to."""
    return {name: opened.with_adapter(folder) for name, folder in named.items()}
