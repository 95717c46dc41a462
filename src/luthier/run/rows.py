"""A few rows to look at a finished model with: those of its run, those that are named, or some that come along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson

from luthier.base.config import read_yaml, validate
from luthier.base.errors import DataError
from luthier.base.records import BadRow, Chat, Fault, Record, Text
from luthier.data.checks import RecordOptions, to_record
from luthier.data.config import DataConfig
from luthier.data.render import Renderer
from luthier.data.row import Row
from luthier.data.sources import Rows, drawn_rows, open_rows, parse_spec
from luthier.model import nano
from luthier.run.config import RunConfig

PREVIEWED = "preview.jsonl"
"""File in a run directory: for each sample of preview.html the token ids of its sequences, as they are trained on."""
_SEARCHED = 20_000
"""Rows of a set among which those of the preview are looked for."""


def previewed(run: Path, trained: RunConfig, renderer: Renderer, count: int) -> list[Chat | Text]:
    """The first `count` rows that the run showed before it trained: those of its data that still give the same tokens.

    Rows that were cut, or are no longer there, are left out.
    """
    file = run / PREVIEWED
    if not file.exists():
        return []
    shown: dict[tuple[int, ...], int] = {}
    for line in file.read_bytes().splitlines():
        sequences: list[list[int]] = orjson.loads(line)
        if len(sequences) == 1:
            shown.setdefault(tuple(sequences[0]), len(shown))
    wanted = dict(list(shown.items())[: 4 * count])  # more than enough, where some cannot be found
    found: dict[int, Chat | Text] = {}
    options = RecordOptions.from_config(trained.data)
    for name in trained.data.datasets:
        rows = _opened(name, trained.data)
        for index in range(min(len(rows), _SEARCHED)):
            if len(found) == len(wanted):
                break
            record = to_record(rows[index], options)[0]
            if isinstance(record, Chat) and (place := wanted.get(_tokens(record, renderer))) is not None:
                found.setdefault(place, record)
    return [found[place] for place in sorted(found)][:count]


def _opened(name: str, data: DataConfig) -> Rows | list[Row]:
    try:
        return open_rows(parse_spec(name, data.hub), data)
    except DataError:  # moved since
        return []


def _tokens(chat: Chat, renderer: Renderer) -> tuple[int, ...]:
    try:
        return tuple(renderer.chat(chat, train_on="last").ids.tolist())
    except BadRow:
        return ()


def run_config(folder: Path) -> RunConfig | None:
    """The settings beside a checkpoint or in a run directory, if it is one of ours."""
    for place in (folder, folder.parent.parent):
        if (place / "config.yaml").exists():
            return validate(RunConfig, read_yaml(place / "config.yaml"))
    return None


def rows_of(named: Sequence[str], trained: RunConfig | None, count: int) -> tuple[list[Chat | Text], str]:
    """Up to `count` chats and texts, spread evenly over the sets, and where they come from.

    Without names they are the run's validation rows, else its training rows; where those cannot be read any more, the
    bundled model's conversations.

    Raises:
        DataError: what is named cannot be read, or holds no chat and no text.
    """
    data = DataConfig() if trained is None else trained.data
    if named:
        found = _read(named, data, count)
        if not found:
            raise DataError("no chat and no text in these rows", where=" ".join(named), code="no_rows")
        return found, ", ".join(Path(name).name for name in named)
    for use, sets in (("validation", data.validation), ("training", data.datasets)):
        try:
            found = _read(sets, data, count)
        except DataError:  # moved since
            continue
        if found:
            return found, f"the run's {use} rows"
    bundled = str(Path(nano.__file__).parent / "text" / "chat.jsonl")
    return _read([bundled], DataConfig(), count), "the bundled conversations"


def _read(named: Sequence[str], data: DataConfig, count: int) -> list[Chat | Text]:
    options = RecordOptions.from_config(data)
    found: list[Chat | Text] = []
    for number, name in enumerate(named):
        rows = drawn_rows(name, data)
        wanted = (count - len(found)) // (len(named) - number)
        taken: list[Record | Fault] = []
        for index in range(0, len(rows), max(1, len(rows) // max(1, wanted))):
            taken.append(to_record(rows[index], options)[0])
        found += [record for record in taken if isinstance(record, Chat | Text)][:wanted]
    return found
