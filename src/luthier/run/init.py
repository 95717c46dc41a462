"""A new, untrained model from a user's text: tokenizer, random weights, and what was read for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerFast

from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Chat, Fault, Record, Text
from luthier.base.rundir import usual_mode
from luthier.data.bundled import CHATML
from luthier.data.checks import RecordOptions, to_record
from luthier.data.config import DataConfig
from luthier.data.mix import take_indices
from luthier.data.sources import open_rows, parse_spec
from luthier.model import scratch_encoders
from luthier.model.config import Shape
from luthier.model.scratch import train_tokenizer, write_untrained


@dataclass(slots=True)
class Read:
    """What the tokenizer was trained on."""

    rows: int = 0
    """Rows that could be used."""
    size: int = 0
    """Bytes of text in them (UTF-8)."""
    rejected: Counter[str] = field(default_factory=Counter[str])
    """Rows that could not be used, by reason."""


def make_untrained(data: DataConfig, shape: Shape, folder: Path, seed: int, console: Console) -> tuple[int, Read]:
    """Train a tokenizer on the data sets and write it beside random weights; gives the parameters and what was read.

    Raises:
        ConfigError: the folder is there and not empty, or there is too little text for the vocabulary.
        DataError: a set that cannot be read, or no usable row.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError("is there and not empty", where=str(folder), fix="Name another --output_dir")
    seen = Read()
    with console.progress("Reading rows and learning tokens") as bar:
        tokenizer = _tokenizer(shape, _Counted(data, seed, seen, bar.advance))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".luthier-init-") as staging:
        whole = Path(staging) / "model"
        write = write_untrained if shape.architecture == "qwen2" else scratch_encoders.write_encoder
        parameters = write(whole, tokenizer, shape, seed)
        for file in whole.iterdir():
            file.chmod(usual_mode())
        whole.rename(folder)  # there whole or not at all
    return parameters, seen


def _tokenizer(shape: Shape, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    if shape.architecture in ("bert", "modernbert"):
        return scratch_encoders.bert_tokenizer(texts, shape.vocab_size)
    if shape.architecture == "t5":
        return scratch_encoders.t5_tokenizer(texts, shape.vocab_size)
    return train_tokenizer(texts, shape.vocab_size, CHATML)


@dataclass(frozen=True)
class _Counted:
    """Every text of every set, as often as one goes through them; `seen` counts those of the last time."""

    data: DataConfig
    seed: int
    seen: Read
    progress: Callable[[int], None]

    def __iter__(self) -> Iterator[str]:
        self.seen.rows = self.seen.size = 0
        self.seen.rejected.clear()
        return _counted(self.data, self.seed, self.seen, self.progress)


def _counted(data: DataConfig, seed: int, seen: Read, progress: Callable[[int], None]) -> Iterator[str]:
    """Every text of every set, counted in `seen`."""
    options = RecordOptions.from_config(data)
    for name in data.datasets:
        spec = parse_spec(name, data.hub)
        rows = open_rows(spec, data)
        for index in take_indices(len(rows), spec.take, seed).tolist():
            record, _ = to_record(rows[index], options)
            progress(1)
            if isinstance(record, Fault):
                if data.bad_rows == "strict":
                    raise DataError(record.message, where=f"{record.where} {record.path}".strip(), code=record.code)
                seen.rejected[record.code] += 1
                continue
            seen.rows += 1
            for text in _texts(record):
                seen.size += len(text.encode())
                yield text
    if not seen.rows:
        raise DataError("no row of these sets can be used", where=", ".join(data.datasets), code="no_rows")


def _texts(record: Record) -> list[str]:
    """What a person or an assistant wrote."""
    if isinstance(record, Chat):
        return [message.content for message in record.messages]
    return [record.text] if isinstance(record, Text) else []
