"""`luthier deploy`: serve a model to OpenAI's clients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.base.config import Config, Named
from luthier.base.console import Console
from luthier.base.errors import ConfigError, MissingExtra
from luthier.base.records import Json
from luthier.generate.config import Backend, EngineConfig, SamplingConfig
from luthier.model.config import ModelConfig
from luthier.serve.config import ServerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.run.opening import Manner
    from luthier.run.result import Usable
    from luthier.serve.engines import Engine
    from luthier.serve.voices import Voice


class DeployConfig(Config):
    """Serving a model."""

    model: ModelConfig = ModelConfig()
    """The model; --adapters name1=dir1 name2=dir2 serves several adapters over one base, by name."""
    server: ServerConfig = ServerConfig()
    """Where to listen, and who may ask."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0)
    """What a request that does not say gets."""
    adapter_dir: Named | None = None
    """Folder of further adapters; clients with an admin key load them by the names of its folders."""
    slots: int = Field(default=16, ge=1, le=1024)
    """Answers under way at a time."""
    max_model_len: int | None = Field(default=None, ge=16)
    """Most tokens of prompt and answer. Unset: what the model holds."""
    cache_tokens: int | None = Field(default=None, ge=256)
    """Tokens that all answers under way keep in memory together. Unset: a quarter of what is free."""
    pooling: Literal["last", "mean"] = "last"
    """Which token makes the embedding of a text."""
    backend: Backend = "transformers"
    """What runs the model; pt is another name for transformers, the others are started as processes."""
    engine: EngineConfig = EngineConfig()
    """With --infer_backend vllm, sglang or lmdeploy: its process."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def deploy(options: DeployConfig, console: Console) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        ConfigError, ModelError: naming the flag or file.
        MissingExtra: the extra `serve` is not installed.
    """
    import os

    from luthier.serve.keys import read_keys

    # Before the model is loaded, which may take minutes.
    read_keys(options.server.host, options.server.api_key, options.server.api_keys, os.environ)
    try:
        from luthier.serve import server
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve", what_for="luthier deploy") from error

    from luthier.run.opening import manner_with, split_named
    from luthier.run.result import find
    from luthier.run.specialist import skill_of
    from luthier.serve.voices import Voices

    model, named = split_named(options.model)
    usable = None if named else find(model)
    if usable is not None and skill_of(usable).kind != "language":
        _deploy_specialist(options, usable, console)
        return
    engine, manner, base = _engine(options, model, named, console)
    name = options.server.served_model_name or base_name(options.model.path or [base.path, *manner.folders][-1])
    registered = {name: Path(folder) for name, folder in named.items()}
    registered |= {
        known: folder for known, folder in adapters_in(options.adapter_dir).items() if known not in registered
    }
    voices = Voices(engine, (name, _voice(manner)), registered, lambda folder: _voice(manner_with(base, folder)))

    server.run(engine, voices, tuple(named), options.server, options.sampling, _told(engine, [name, *named], console))
    console.say("Stopped")


def _told(engine: Engine, names: list[str], console: Console) -> Callable[[str], None]:
    """Says where the server listens."""

    def listening(address: str) -> None:
        console.result(
            f"Serving {', '.join(names)} at {address}/v1 (Ctrl-C finishes what is under way)",
            url=f"{address}/v1",
            models=list[Json](names),
            slots=engine.slots,
            max_model_len=engine.max_length,
        )

    return listening


def _deploy_specialist(options: DeployConfig, usable: Usable, console: Console) -> None:
    """Serve a model that makes vectors, scores pairs, classifies or tags."""
    from luthier.run.serving import specialist
    from luthier.serve import server
    from luthier.serve.voices import Voice, Voices

    if options.backend not in ("transformers", "pt"):
        raise ConfigError("a model that does not talk runs in this process", where=f"--infer_backend {options.backend}")
    engine, mute = specialist(usable, options.device, options.slots)
    name = options.server.served_model_name or base_name(
        options.model.path or [usable.model.path, *usable.model.adapters][-1]
    )
    voices = Voices(engine, (name, Voice(mute)), {}, lambda folder: Voice(mute))
    console.say(f"This model {mute.does}: it answers {engine.routes}")
    server.run(engine, voices, (), options.server, options.sampling, _told(engine, [name], console))
    console.say("Stopped")


def _engine(
    options: DeployConfig, model: ModelConfig, named: dict[str, str], console: Console
) -> tuple[Engine, Manner, ModelConfig]:
    """What answers, how the base is spoken to, and what it is."""
    if options.backend not in ("transformers", "pt"):
        from luthier.run.peers import open_peer

        console.say(f"Starting {options.backend}")
        return open_peer(
            model,
            options.backend,
            options.engine,
            slots=options.slots,
            max_length=options.max_model_len,
            named=named,
            later=options.adapter_dir is not None,
        )
    from luthier.generate.continuous import Continuous
    from luthier.run.opening import open_model
    from luthier.serve.local import LocalEngine

    opened = open_model(model, options.device, console.say)
    generator = Continuous(
        opened.model,
        stop_ids=opened.manner.renderer.stop_ids,
        slots=options.slots,
        max_length=options.max_model_len,
        cache_tokens=options.cache_tokens,
    )
    if opened.model.note:
        console.say(opened.model.note)
    return LocalEngine(generator, options.pooling), opened.manner, opened.config


def base_name(path: str) -> str:
    """What clients call a model: the last part of its path; for a run's checkpoint, the run's."""
    parts = [part for part in re.split(r"[/\\]", path.rstrip("/\\")) if part]
    while len(parts) > 1 and (parts[-1] == "checkpoints" or re.fullmatch(r"step-\d+", parts[-1])):
        parts.pop()
    return parts[-1] if parts else "model"


def adapters_in(folder: str | None) -> dict[str, Path]:
    """The adapters in a folder, by the names of theirs; links that lead out of it are left out.

    Raises:
        ConfigError: there is no such folder.
    """
    if folder is None:
        return {}
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ConfigError("no such folder", where=f"--adapter_dir {folder}")
    inside = root.resolve()
    found: dict[str, Path] = {}
    for child in sorted(root.iterdir()):
        if child.is_dir() and child.resolve().is_relative_to(inside) and not child.name.startswith("."):
            found[child.name] = child
    return found


def _voice(manner: Manner) -> Voice:
    from luthier.serve.voices import Voice

    return Voice(manner.renderer, manner.system or None, manner.folders)
