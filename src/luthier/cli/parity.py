"""`luthier parity`: is what is served what was trained?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from pydantic import Field

from luthier.base.config import Config, Named
from luthier.base.console import Console
from luthier.base.errors import ConfigError, LuthierError, MissingExtra
from luthier.base.rundir import write_atomic
from luthier.generate.config import Backend, EngineConfig
from luthier.model.config import ModelConfig

if TYPE_CHECKING:
    from luthier.run.opening import Manner
    from luthier.run.parity import Answering


class ParityConfig(Config):
    """Comparing ways to run one model."""

    run: str = ""
    """The run, or one of its checkpoints."""
    exported: tuple[Named, ...] = ()
    """Folders that luthier export made of it. Unset: it is merged in float32 for the comparison."""
    rows: int = Field(default=4, ge=1)
    """Rows of the run's preview to compare with; or of --dataset."""
    dataset: tuple[Named, ...] = ()
    """Other rows."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Most tokens of each answer."""
    tolerance: float = Field(default=0.02, ge=0)
    """Largest difference of a token's log-probability between engines with the same weights."""
    rounded_tolerance: float = Field(default=0.5, ge=0)
    """Mean difference allowed to weights in few bits."""
    report: Named | None = None
    """JSON file for the result. Unset: parity.json in the run directory."""
    backend: Backend = "transformers"
    """vllm, sglang or lmdeploy: that engine is compared too."""
    engine: EngineConfig = EngineConfig()
    """Its process."""
    device: str = "auto"
    """cpu, cuda, or auto."""


class Disagree(LuthierError):
    """Ways to run the model differ by more than was allowed."""

    code = "not_the_same"


def parity(options: ParityConfig, console: Console) -> None:
    """Compare, print the table, write the report.

    Raises:
        Disagree: something differs beyond its tolerance.
        ConfigError, ModelError: naming the flag or folder.
    """
    if not options.run:
        raise ConfigError("no run was named", where="--run", fix="luthier parity RUN")
    try:
        from luthier.run import parity as room
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve", what_for="luthier parity") from error
    from luthier.data.render import Renderer
    from luthier.model.load import load_tokenizer
    from luthier.run.opening import manner_of
    from luthier.run.rows import previewed, rows_of, run_config

    model = _named(options.run)
    manner, found = manner_of(model)
    artefact = Path(found.adapters[-1] if found.adapters else found.path).expanduser()
    trained = run_config(artefact)
    if trained is None:
        raise ConfigError("is not a run of Luthier", where=options.run, fix="Give a run directory or a checkpoint")
    settings = trained.model
    training = Renderer(load_tokenizer(found.model_copy(update={"adapters": ()})), template=settings.template or manner.renderer.template, template_args=settings.template_args)  # fmt: skip  # noqa: E501
    shown = [] if options.dataset else previewed(_place(artefact), trained, training, options.rows)
    records, origin = (
        (shown, "of the run's preview, token by token as they were trained on")
        if shown
        else rows_of(options.dataset, trained, options.rows)
    )
    asked = room.questions(records)
    if not asked:
        raise ConfigError("there is no chat among these rows", where="--dataset", fix="Name rows that end in an answer")
    prompts = room.compare_prompts(asked, training, manner.renderer, manner.system, str(artefact))
    console.say(f"{len(asked)} rows: {origin}")
    console.table("The same prompt as in training", [{"way": way, "rows": f"{n}/{len(asked)}"} for way, n in prompts.same.items()])  # fmt: skip  # noqa: E501
    agreements: list[room.Agreement] = []
    reference: list[room.Spoken] | None = None
    for name, exact, engine in _engines(options, model, manner, bool(found.adapters), console):
        spoken = room.answers(engine, prompts.ids, options.max_new_tokens)
        if reference is None:
            reference = spoken
            continue
        tolerance = options.tolerance if exact else options.rounded_tolerance
        tokenizer = manner.renderer.tokenizer
        agreement = room.compare_answers(name, reference, spoken, tokenizer, exact=exact, tolerance=tolerance)
        agreements.append(agreement)
    console.table(
        "Against the model as it was trained",
        [
            {
                "engine": one.engine,
                "same answers": f"{one.same}/{one.answers}",
                "largest difference": f"{one.largest:.5f}",
                "mean": f"{one.mean:.5f}",
                "": "differs" if one.failed else "agrees",
            }
            for one in agreements
        ],
        result=True,
    )
    for line in [*prompts.differences, *(f"{one.engine}: {line}" for one in agreements for line in one.differences)]:
        console.say(line)
    file = Path(options.report).expanduser() if options.report else _place(artefact) / "parity.json"
    write_atomic(file, orjson.dumps(dict(room.as_json(prompts, agreements)), option=orjson.OPT_INDENT_2))
    console.say(f"Report: {file}")
    failed = ["prompts"] * prompts.failed + [one.engine for one in agreements if one.failed]
    if failed:
        raise Disagree(
            f"beyond the tolerance: {', '.join(failed)}", where=options.run, fix="The lines above name where"
        )


def _named(run: str) -> ModelConfig:
    """The run as a model or as an adapter, whichever it holds."""
    from luthier.run.result import find

    folder = Path(str(find(ModelConfig(path=run)).model.path)).expanduser()
    adapter = (folder / "adapter_config.json").exists()
    return ModelConfig(adapters=(run,)) if adapter else ModelConfig(path=run)


def _engines(
    options: ParityConfig, model: ModelConfig, manner: Manner, adapted: bool, console: Console
) -> Iterator[tuple[str, bool, Answering]]:
    """Each engine with its name and whether it must be exact, the reference first; each ends before the next begins."""
    from luthier.export.config import ExportConfig
    from luthier.generate.continuous import Continuous
    from luthier.model.folder import read_json
    from luthier.run.export import export
    from luthier.run.opening import open_model

    folders = list(options.exported)
    with ExitStack() as stack:
        if not folders and adapted:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="luthier-parity-"))) / "merged"
            wish = ExportConfig(
                model=model.model_copy(update={"dtype": "float32"}), merge_lora=True, output_dir=str(work)
            )
            export(wish, Console(quiet=True))
            folders = [str(work)]
        for name, config in [("adapter" if adapted else "model", model)] + [
            (Path(folder).name, ModelConfig(path=folder)) for folder in folders
        ]:
            opened = open_model(config, options.device, console.say)
            generator = Continuous(opened.model, stop_ids=manner.renderer.stop_ids, slots=1)
            rounded = config.path and "quantization_config" in read_json(Path(config.path).expanduser() / "config.json")
            try:
                yield name, not rounded, generator
            finally:
                generator.close()
        if options.backend not in ("transformers", "pt"):
            from luthier.run.peers import open_peer
            from luthier.serve.blocking import Blocking

            console.say(f"Starting {options.backend}")
            peer, _, _ = open_peer(model, options.backend, options.engine, slots=1)
            yield options.backend, True, stack.enter_context(Blocking(peer))


def _place(artefact: Path) -> Path:
    return artefact.parents[1] if artefact.parent.name == "checkpoints" else artefact
