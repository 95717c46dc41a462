"""Plain text, whose perplexity and bits per byte are measured."""

from __future__ import annotations

from pathlib import Path

from luthier.base.errors import DataError
from luthier.base.records import Message
from luthier.evaluate.config import Method, SetConfig
from luthier.evaluate.files import read, subsets
from luthier.evaluate.task import Item, Task, unmarked


def texts(name: str, folder: Path, config: SetConfig, _: Method) -> list[Task]:
    """A file of texts (a column text, or .txt), or a folder of `<subset>.jsonl`; each row is a document."""
    tasks: list[Task] = []
    for subset, path in subsets(folder, config.subset_list, f"_{config.split}" if config.split else "", name).items():
        items: list[Item] = []
        for number, line in enumerate(read(path, config.limit)):
            if not line.text("text"):
                raise DataError("needs a column text", where=line.where, code="bad_question")
            items.append(Item(str(number), (Message("user", line.text("text")),), ()))
        tasks.append(Task(name, subset, tuple(items), "read", unmarked, metrics=config.metric_list))
    return tasks
