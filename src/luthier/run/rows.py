"""A few rows to look at a finished model with: those of its run, those that are named, or some that come along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.base.config import read_yaml, validate
from luthier.base.errors import DataError
from luthier.base.records import Chat, Fault, Record, Text
from luthier.data.checks import RecordOptions, to_record
from luthier.data.config import DataConfig
from luthier.data.sources import open_rows, parse_spec
from luthier.model import nano
from luthier.run.config import RunConfig


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
        rows = open_rows(parse_spec(name, data.hub), data)
        wanted = (count - len(found)) // (len(named) - number)
        taken: list[Record | Fault] = []
        for index in range(0, len(rows), max(1, len(rows) // max(1, wanted))):
            taken.append(to_record(rows[index], options)[0])
        found += [record for record in taken if isinstance(record, Chat | Text)][:wanted]
    return found
