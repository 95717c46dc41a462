"""`luthier infer`: talk to a model, or answer a file of questions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.base.config import Config
from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.generate.config import SamplingConfig
from luthier.model.config import ModelConfig

if TYPE_CHECKING:
    from luthier.data.render import Renderer
    from luthier.generate.sampler import Sampler


class InferConfig(Config):
    """Using a model."""

    model: ModelConfig = ModelConfig()
    """The model; with adapters of a run its base, template and system message come from the run."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are chosen."""
    system: str | None = None
    """System message. Unset: the one the model was trained with, if any."""
    stream: bool = True
    """Print the answer while it is made."""
    val_dataset: str | None = None
    """Answer the questions of this data set instead of talking: any shape that is trained on, or questions alone."""
    result_path: str | None = None
    """JSON-lines file for the answers to val_dataset; lines already in it are not answered again."""
    batch_size: int = Field(default=8, ge=1)
    """Questions of val_dataset answered at once."""
    backend: Literal["transformers", "pt"] = "transformers"
    """What runs the model; pt is another name for transformers."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def infer(options: InferConfig, console: Console) -> None:
    """Talk on the terminal, or answer `val_dataset` into `result_path`.

    Raises:
        ConfigError, ModelError, DataError: naming the flag, file or row.
    """
    if (options.val_dataset is None) != (options.result_path is None):
        raise ConfigError(
            "val_dataset and result_path belong together", where="--result_path", fix="Give both, or neither to talk"
        )
    # A page of help must not wait for torch.
    from luthier.cli.answers import Answerer, answer_file
    from luthier.cli.conversation import WORDS, Conversation, show, typed

    sampler, renderer, system = _open(options, console)
    if options.val_dataset is not None and options.result_path is not None:
        answerer = Answerer(sampler, renderer, options.sampling, system, options.batch_size)
        with console.progress("Answering rows") as bar:
            done = answer_file(options.val_dataset, Path(options.result_path), answerer, bar.advance)
        console.result(done, summary=done, result_path=options.result_path)
    else:
        if sys.stdin.isatty():
            show(WORDS)
        Conversation(sampler, renderer, options.sampling, system, stream=options.stream).run(typed, show)


def _open(options: InferConfig, console: Console) -> tuple[Sampler, Renderer, str | None]:
    import torch

    from luthier.data.render import Renderer
    from luthier.generate.local import Local
    from luthier.model import methods
    from luthier.model.load import load_model, load_tokenizer
    from luthier.run.result import find

    usable = find(options.model)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    tokenizer = load_tokenizer(usable.tokenizer)
    renderer = Renderer(tokenizer, template=usable.model.template, template_args=usable.model.template_args)
    quant = usable.model.quant
    if quant.on and options.model.quant.method is None:
        console.say(f"The base is held in {quant.bits} bits, as in training; --quant_method none leaves it as it is")
    model = load_model(usable.model, torch.device(device), tokenizer=tokenizer, trained=False)
    methods.attach(model, usable.model.adapters)
    system = usable.system if options.system is None else options.system
    return Local(model, stop_ids=renderer.stop_ids, batch=options.batch_size), renderer, system or None
