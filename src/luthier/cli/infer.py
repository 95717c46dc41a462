"""`luthier infer`: talk to a model, or answer a file of questions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.base.config import Config, Named
from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.generate.config import Backend, EngineConfig, SamplingConfig
from luthier.model.config import ModelConfig

if TYPE_CHECKING:
    from luthier.cli.speaker import Speaker
    from luthier.generate.request import Form


class InferConfig(Config):
    """Using a model."""

    model: ModelConfig = ModelConfig()
    """The model; with adapters of a run its base, template and system message come from the run. --adapters
    name1=dir1 name2=dir2 keeps several beside one base, to choose from by name."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are chosen."""
    adapter: Named | None = None
    """Name of the adapter that answers, of several; rows of val_dataset may name another one. Unset: the base."""
    system: str | None = None
    """System message. Unset: the one the model was trained with, if any."""
    stream: bool = True
    """Print the answer while it is made."""
    json_schema: Named | None = None
    """Answers fit this JSON schema: a file, or the schema itself."""
    regex: str | None = None
    """Answers match this regular expression."""
    val_dataset: Named | None = None
    """Answer the questions of this data set instead of talking: any shape that is trained on, or questions alone."""
    columns: dict[str, str] = {}
    """Rename columns of val_dataset before its shape is recognised: {"their name": "our name"}. What was renamed in
    training is renamed here too."""
    result_path: Named | None = None
    """JSON-lines file for the answers to val_dataset. What the same model has answered there with the same settings is
    not asked again; with others another file is needed."""
    batch_size: int = Field(default=8, ge=1)
    """Answers to val_dataset under way at once."""
    backend: Backend = "transformers"
    """What runs the model; pt is another name for transformers, the others are started as processes."""
    engine: EngineConfig = EngineConfig()
    """With --infer_backend vllm, sglang or lmdeploy: its process."""
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
    form = form_of(options.json_schema, options.regex)
    # A page of help must not wait for torch.
    from luthier.cli.predict import predicts
    from luthier.run.opening import split_named
    from luthier.run.result import find
    from luthier.run.resultfile import claim, leave_others_alone

    config, named = split_named(options.model)
    usable = None if named else find(config)
    columns = {**(usable.columns if usable else {}), **options.columns}
    if options.result_path is not None:
        leave_others_alone(Path(options.result_path), options.val_dataset or "")
        claim(Path(options.result_path), made_by(options, config, named, columns))
    if usable is not None and predicts(usable, columns, options, console):
        return
    from luthier.cli.answers import answer_file
    from luthier.cli.conversation import WORDS, Conversation, show, typed

    with ExitStack() as stack:
        speaker = _open(config, named, options, form, console, stack)
        if options.val_dataset is not None and options.result_path is not None:
            result = Path(options.result_path)
            try:
                with console.progress("Answering rows") as bar:
                    done = answer_file(options.val_dataset, result, speaker, columns, bar.advance)
            except KeyboardInterrupt:
                console.say(f"What is answered is in {result}; the same command goes on from there")
                raise
            console.result(done, summary=done, result_path=options.result_path)
        else:
            if sys.stdin.isatty():
                show(WORDS)
            Conversation(speaker, stream=options.stream).run(typed, show)


def made_by(
    options: InferConfig, config: ModelConfig, named: Mapping[str, str], columns: Mapping[str, str]
) -> dict[str, Json]:
    """What decides what a line of `result_path` says, besides what stands in its row.

    Raises:
        ConfigError, ModelError: a model is not there.
    """
    from luthier.run.result import find
    from luthier.run.subject import identity

    every = {name: find(config.model_copy(update={"adapters": [folder]})) for name, folder in named.items()}
    models = every.values() if named else [find(config)]
    told = [f"{(one.model.adapters or [one.model.path])[-1]} ({identity(one)})" for one in models]
    form = form_of(options.json_schema, options.regex)
    data = options.val_dataset or ""
    return {
        "data": str(Path(data).resolve()) if Path(data).exists() else data,
        "model": ", ".join(told),
        "adapter": options.adapter,
        "backend": "transformers" if options.backend == "pt" else options.backend,
        "system": options.system,
        "columns": dict(columns),
        "form": form and form.text,
        **options.sampling.model_dump(mode="json"),
    }


def form_of(json_schema: Named | None, regex: str | None) -> Form | None:
    """What answers must look like.

    Raises:
        ConfigError: both are given, or the schema is no JSON.
    """
    import json

    from luthier.generate.request import Form

    if json_schema is not None and regex is not None:
        raise ConfigError("an answer has one form only", where="--regex", fix="Give --json_schema or --regex")
    if regex is not None:
        return Form("regex", regex)
    if json_schema is None:
        return None
    given = json_schema.lstrip().startswith("{")
    try:
        text = json_schema if given else Path(json_schema).expanduser().read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        where = "--json_schema" if given else f"--json_schema {json_schema}"
        raise ConfigError(f"no JSON schema: {error}", where=where, fix="Give a file, or the schema itself") from error
    return Form("json", text)


def _open(
    config: ModelConfig,
    named: Mapping[str, str],
    options: InferConfig,
    form: Form | None,
    console: Console,
    stack: ExitStack,
) -> Speaker:
    """The model, with adapters by name."""
    from luthier.cli.speaker import Speaker
    from luthier.run.opening import manner_with, manners, open_model

    if options.backend not in ("transformers", "pt"):
        from luthier.run.peers import open_peer
        from luthier.serve.blocking import Blocking

        console.say(f"Starting {options.backend}")
        engine, manner, base = open_peer(config, options.backend, options.engine, slots=options.batch_size, named=named)
        speaker = Speaker(stack.enter_context(Blocking(engine)), manner, options.sampling, options.system, form)
        for name, folder in named.items():
            speaker.add(name, manner_with(base, folder))
    else:
        from luthier.generate.continuous import Continuous

        opened = open_model(config, options.device, console.say)
        stop_ids = opened.manner.renderer.stop_ids
        generator = Continuous(opened.model, stop_ids=stop_ids, slots=options.batch_size)
        stack.callback(generator.close)  # a thread in the middle of a step must not meet the interpreter's end
        speaker = Speaker(generator, opened.manner, options.sampling, options.system, form)
        for name, manner in manners(opened, named).items():
            speaker.add(name, manner)
    if options.adapter is not None:
        speaker.choose(options.adapter)
    return speaker
