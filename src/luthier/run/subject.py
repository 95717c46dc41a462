"""Opening a model to evaluate, and telling whether it is the one that earlier results came from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from luthier.base.endpoint import EndpointConfig
from luthier.base.errors import ConfigError
from luthier.base.secrets import redact
from luthier.evaluate.config import EvalConfig
from luthier.evaluate.measure import Examined
from luthier.evaluate.remote import Remote
from luthier.evaluate.specialist import LANGUAGE, Skill, Specialist
from luthier.evaluate.subject import Subject
from luthier.generate.endpoint import Endpoint
from luthier.generate.local import Local
from luthier.generate.sampler import Sampler
from luthier.model.causal import Model
from luthier.model.config import ModelConfig
from luthier.model.device import device_of
from luthier.model.folder import model_folder
from luthier.run.opening import Manner, open_model
from luthier.run.result import Usable, find
from luthier.run.specialist import open_specialist, skill_of

_PATIENCE = 600.0
"""Seconds to wait for an answer of a server."""


@dataclass(frozen=True)
class Askable:
    """A model that can be asked, before anything of it is loaded."""

    name: str
    """As it stands in tables."""
    identity: str
    """Tells it from other models of this name, so that results of those are not taken for its own."""
    skill: Skill
    opened: Callable[[Callable[[str], None]], AbstractContextManager[Examined]]
    """Loads it, and says so; what runs it ends with the block."""


@contextmanager
def examined(options: EvalConfig, model: ModelConfig, say: Callable[[str], None]) -> Generator[Subject | Specialist]:
    """A model, loaded for what it can do; a server that runs it ends with the block.

    Raises:
        ConfigError, ModelError: naming what is missing.
    """
    usable = find(model)
    if skill_of(usable).kind != "language":
        yield open_specialist(usable, device_of(options.device), name_of(usable), options.batch_tokens)
    elif options.backend in ("transformers", "pt"):
        opened = open_model(model, options.device, say)
        sampler = Local(opened.model, stop_ids=opened.manner.renderer.stop_ids, batch=options.eval_batch_size)
        yield _subject(options, usable, opened.manner, sampler, opened.model, opened.model.max_length, say)
    else:
        from luthier.run.peers import open_peer
        from luthier.serve.blocking import Blocking

        say(f"Starting {options.backend}")
        engine, manner, _ = open_peer(model, options.backend, options.engine, slots=options.eval_batch_size)
        with Blocking(engine) as sampler:
            yield _subject(options, usable, manner, sampler, None, engine.max_length, say)


def _subject(
    options: EvalConfig,
    usable: Usable,
    manner: Manner,
    sampler: Sampler,
    here: Model | None,
    longest: int,
    say: Callable[[str], None],
) -> Subject:
    chat = options.apply_chat_template
    if chat is None:
        chat = bool(manner.renderer.tokenizer.chat_template or usable.model.template)
        if not chat:
            say("The model brings no chat template: it is asked in plain text (--apply_chat_template true to change)")
    return Subject(
        name=name_of(usable),
        here=here,
        max_length=longest,
        renderer=manner.renderer,
        sampler=sampler,
        sampling=options.sampling,
        system=(manner.system if options.system is None else options.system) or None,
        chat=chat,
        batch_tokens=options.batch_tokens,
        engine=options.backend,
    )


def subject_of(options: EvalConfig) -> Askable:
    """The model that is evaluated.

    Raises:
        ConfigError: it is not named, or cannot be asked so.
    """
    return _served(options, options.model.path) if options.eval_url is not None else _local(options, options.model)


def other_of(options: EvalConfig) -> Askable | None:
    """The model to compare with, if any.  Raises as `subject_of`."""
    if options.compare is None:
        return None
    return _served(options, options.compare) if options.eval_url is not None else _local(options, _other(options))


def _local(options: EvalConfig, model: ModelConfig) -> Askable:
    usable = find(model)
    opened = partial(examined, options, model)
    return Askable(name_of(usable), identity(usable), skill_of(usable), opened)


def _served(options: EvalConfig, name: str) -> Askable:
    """A model behind --eval_url."""
    if options.model.adapters or options.backend not in ("transformers", "pt"):
        flag = "--adapters" if options.model.adapters else "--infer_backend"
        raise ConfigError("the server decides this", where=flag, fix="Leave it out, or --eval_url")
    if not name:
        raise ConfigError("no model was named", where="--model", fix="Give its name, as the server lists it")
    config = EndpointConfig(
        base_url=options.eval_url,
        model=name,
        api_key_env=options.eval_key_env,
        concurrency=options.eval_batch_size,
        timeout=_PATIENCE,
    )
    endpoint = Endpoint(config, Path(options.output_dir) / "answers.sqlite")
    key = hashlib.blake2b(orjson.dumps([options.eval_url, name]), digest_size=5).hexdigest()
    shown = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"

    @contextmanager
    def opened(say: Callable[[str], None]) -> Generator[Remote]:
        say(f"Asking {name} at {redact(str(options.eval_url))}")
        yield Remote(shown, endpoint, options.sampling, options.system or None, options.apply_chat_template)

    return Askable(shown, key, LANGUAGE, opened)


def _other(options: EvalConfig) -> ModelConfig:
    """The model to compare with, as it is opened here."""
    named = str(options.compare)
    if named != "base":
        place = Path(named).expanduser()
        adapters = next(place.glob("adapter_config.json"), None) or next(
            (
                path
                for depth in ("checkpoints/*", "*/checkpoints/*")
                for path in place.glob(f"{depth}/adapter_config.json")
            ),
            None,
        )
        change = {"path": "", "adapters": (named,)} if adapters else {"path": named, "adapters": ()}
        return options.model.model_copy(update=change)
    usable = find(options.model).model
    if not usable.adapters:
        raise ConfigError("base stands for the model without its adapters, and there are none", where="--compare")
    return usable.model_copy(update={"adapters": usable.adapters[:-1]})


def name_of(usable: Usable) -> str:
    """The name of a model in tables: that of its last adapter or of its folder, without what is the same in all."""
    path = Path(usable.model.adapters[-1] if usable.model.adapters else usable.model.path)
    parts = [part for part in path.parts if part != "checkpoints"]
    step = path.name.startswith("step-") and len(parts) > 1
    return f"{parts[-2]}-{parts[-1]}" if step else path.name


def identity(usable: Usable) -> str:
    """Hash of how a model is held and of its files by name, size and time, so that results of another are not taken."""
    folders = [model_folder(usable.model), *(Path(adapter) for adapter in usable.model.adapters)]
    files = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in sorted(folder.glob("*"))
        if path.suffix in (".safetensors", ".json", ".jinja")
    ]
    content = usable.model.model_dump(mode="json"), files
    return hashlib.blake2b(orjson.dumps(content), digest_size=5).hexdigest()
