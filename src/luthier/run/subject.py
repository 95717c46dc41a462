"""Opening a model to evaluate, and telling whether it is the one that earlier results came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import orjson
import torch

from luthier.base.errors import ConfigError
from luthier.data.render import Renderer
from luthier.evaluate.config import EvalConfig
from luthier.evaluate.subject import Subject
from luthier.generate.local import Local
from luthier.model import methods
from luthier.model.config import ModelConfig
from luthier.model.folder import model_folder
from luthier.model.load import load_model, load_tokenizer
from luthier.run.result import Usable, find


def open_subject(options: EvalConfig, model: ModelConfig, say: Callable[[str], None]) -> Subject:
    """Load a model as the settings of the evaluation want it.

    Raises:
        ConfigError, ModelError: naming what is missing.
    """
    usable = find(model)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    tokenizer = load_tokenizer(usable.tokenizer)
    renderer = Renderer(tokenizer, template=usable.model.template, template_args=usable.model.template_args)
    chat = options.apply_chat_template
    if chat is None:
        chat = bool(tokenizer.chat_template or usable.model.template)
        if not chat:
            say("The model brings no chat template: it is asked in plain text (--apply_chat_template true to change)")
    opened = load_model(usable.model, torch.device(device), tokenizer=tokenizer, trained=False)
    methods.attach(opened, usable.model.adapters)
    return Subject(
        name=name_of(usable),
        model=opened,
        renderer=renderer,
        sampler=Local(opened, stop_ids=renderer.stop_ids, batch=options.eval_batch_size),
        sampling=options.sampling,
        system=(usable.system if options.system is None else options.system) or None,
        chat=chat,
        batch_tokens=options.batch_tokens,
    )


def other_model(options: EvalConfig) -> ModelConfig:
    """The model to compare with.

    Raises:
        ConfigError: base was named and there are no adapters to leave out.
    """
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
