"""More tokens in a run: the base with the larger vocabulary is made once, and the run goes on with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from luthier.base.console import Console
from luthier.base.records import Json
from luthier.data.sources import open_rows, parse_spec
from luthier.engine.mesh import Mesh
from luthier.model.vocabulary import FILE, asked, grow
from luthier.run.config import RunConfig


def with_vocabulary(config: RunConfig, mesh: Mesh, console: Console) -> RunConfig:
    """The config with the larger base in the model's place, where tokens are to be added.

    The base lies beside the runs, under a name that says what was asked for; a second run finds it there.  Processes
    take turns.

    Raises:
        ConfigError, ModelError, DataError: see `model.vocabulary.grow`.
    """
    settings = config.model.vocabulary
    if not settings.grows or (Path(config.model.path) / FILE).exists():
        return config
    folder = Path(config.output_dir) / f"base-{asked(settings, config.model.path)}"
    with mesh.leader_first():
        if not (folder / FILE).exists():
            _make(config, folder, console)
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(folder), "revision": None})})


def _make(config: RunConfig, folder: Path, console: Console) -> None:
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    console.say("Making a base with more tokens")
    grown = grow(config.model, config.model.vocabulary, making, lambda: _texts(config))
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    told = ", ".join(grown.texts[-5:])
    wanted = config.model.vocabulary.learn
    if grown.learned < wanted:
        console.warn(f"the text was enough to learn {grown.learned} tokens, not {wanted}")
    console.say(f"{len(grown.tokens)} tokens more ({told}), each from the middle of its old pieces: {folder}")


def _texts(config: RunConfig) -> Iterator[str]:
    """Every text in the rows of the sets, whatever their shape."""
    for named in config.model.vocabulary.text or config.data.datasets:
        rows = open_rows(parse_spec(named, config.data.hub), config.data)
        for index in range(len(rows)):
            value = rows[index].value
            if isinstance(value, dict):
                yield from _strings(value)


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
