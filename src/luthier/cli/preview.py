"""`luthier preview`: what a model would be trained on, token by token, before it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.base.config import Config, Named
from luthier.base.console import Console
from luthier.base.errors import DataError
from luthier.base.records import Json
from luthier.base.rundir import write_atomic
from luthier.data.config import DataConfig
from luthier.engine.config import StepConfig
from luthier.model.config import ModelConfig
from luthier.objectives.config import One, Sft
from luthier.run.config import RunConfig
from luthier.run.resolve import resolve

if TYPE_CHECKING:
    from luthier.data.dataset import Prepared
    from luthier.data.preview import PreviewRow

_REJECTED = 5  # rejected rows that are listed


class PreviewConfig(Config):
    """Looking at training data."""

    objective: One = Sft()
    """What would be learned."""
    model: ModelConfig = ModelConfig()
    """The model whose tokenizer and template are used; its weights are not read."""
    data: DataConfig = DataConfig()
    """Data sets and their rows."""
    rows: int = Field(default=5, ge=1)
    """Samples to show."""
    html: Named | None = None
    """Also write the samples as an HTML page to this file."""
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seed of #N draws."""


def preview(options: PreviewConfig, console: Console) -> None:
    """Show samples on stdout, the data report on stderr, and everything in an HTML page when one is asked for.

    Raises:
        ConfigError, ModelError, DataError: as training would, also when the data cannot be learned from.
    """
    # Streaming looks at the first rows only and wants to know a length of training that does not matter here.
    train = StepConfig(max_steps=1)
    config = resolve(RunConfig(objective=options.objective, model=options.model, data=options.data, train=train))
    from luthier.data import report

    rows, prepared = _prepare(options, config, console)
    _show(rows, console)
    console.table("Data", report.table(prepared.report))
    for note in report.notes(prepared.report):
        console.say(note)
    for row in prepared.rejected[:_REJECTED]:
        console.say(f"{row['file']}:{row['line']}: {row['message']} [{row['code']}]")
    if options.html:
        from luthier.data.preview import page

        file = Path(options.html).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, page(rows, prepared.report).encode())
        console.say(f"Page: {options.html}")
    report.refuse(prepared.report, config.data, prepared.rejected)


def _prepare(options: PreviewConfig, config: RunConfig, console: Console) -> tuple[list[PreviewRow], Prepared]:
    """The data as a run would see it, and its first samples in order of the files."""
    from luthier.data.dataset import encoding_of, prepare
    from luthier.data.preview import preview_rows
    from luthier.model.load import context_length, load_tokenizer
    from luthier.objectives.registry import build
    from luthier.objectives.setting import Setting

    tokenizer = load_tokenizer(config.model)
    max_length = min(config.data.max_length, context_length(config.model, tokenizer))
    objective = build(options.objective, Setting(tokenizer, config.model, config.data, max_length))
    encoding = encoding_of(config.data, objective.encode, objective.key, objective.stop_ids, max_length, objective.task)
    with console.progress("Reading and tokenising rows") as bar:
        prepared = prepare(config.data, encoding, template_note=objective.note, seed=options.seed, progress=bar.advance)
    if not len(prepared.train) and not prepared.rejected:
        raise DataError("there is no row to show", where=" ".join(config.data.datasets), code="empty")
    return preview_rows(prepared.train, tokenizer, options.rows), prepared


def _show(rows: list[PreviewRow], console: Console) -> None:
    from luthier.data.preview import terminal

    for row in rows:
        pieces: list[Json] = [
            {"text": piece.text, "ids": list(piece.ids), "weight": piece.weight} for piece in row.pieces
        ]
        console.result(terminal(row), name=row.name, tokens=row.tokens, trained=row.trained, pieces=pieces)
        if not console.json:
            console.result("")
