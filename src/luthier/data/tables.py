"""Parquet, Arrow and hub data sets as rows, read through `datasets` and `pyarrow`."""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet

from luthier.base.errors import DataError, MissingExtra
from luthier.base.records import Fault, Json, Where
from luthier.base.sealed import sha256_of
from luthier.data.row import Row

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of a memory-mapped Arrow table; `Where.line` is the row's number."""

    name: str
    fingerprint: str
    table: datasets.Dataset
    """In the format `arrow`, so that columns of pictures and sound stay undecoded."""
    limit: int
    """Most bytes of a row; longer ones are faults and are never converted."""

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self.table):
            raise IndexError(index)
        return _row(self.name, index, self.table[index : index + 1], self.limit)


def _row(name: str, number: int, one: pa.Table | pa.RecordBatch, limit: int) -> Row:
    """A table of one row as a Row."""
    where = Where(name, number + 1)
    if one.nbytes > limit:
        return Row(where, Fault("too_long", where, "the row is longer than max_row_bytes"))
    return Row(where, {key: to_json(item) for key, item in one.to_pylist()[0].items()})


def to_json(value: Any) -> Json:
    """An Arrow value as JSON: times in ISO format, bytes in base64, decimals as text."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [to_json(item) for item in value]
        case bytes():
            return base64.b64encode(value).decode()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal():
            return str(value)
        case _:
            raise DataError(
                f"a column of type {type(value).__name__} cannot be read", fix="Convert it to text or numbers"
            )


def open_table(path: Path, name: str, cache: Path, limit: int) -> TableRows:
    """A Parquet or Arrow file.

    Raises:
        DataError: `unreadable_file`, or `empty_file` when there is no row.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    builder = path.suffix.lower().removeprefix(".")
    _check(path)
    fingerprint = _hash_files([path], limit)
    folder = str(cache / fingerprint)  # the library's own cache goes by path and time, which content may outlive
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(builder, data_files=[str(path.absolute())], split="train", cache_dir=folder)
    except (DatasetGenerationError, pa.ArrowException, OSError) as error:
        raise _unreadable(path, error.__cause__ or error) from error
    if len(table) == 0:
        raise DataError("the file holds no rows", where=name, code="empty_file")
    return TableRows(name, fingerprint, table.with_format("arrow"), limit)


def _check(path: Path) -> None:
    """Fail on a damaged file here, with one message, rather than inside the library."""
    try:
        if path.suffix.lower() == ".parquet":
            pyarrow.parquet.read_schema(path)
        else:
            next(iter(_arrow_batches(path)), None)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError("the file cannot be read", where=str(path), fix=_first_line(error), code="unreadable_file")


def _hash_files(paths: list[Path], limit: int) -> str:
    return hashlib.sha256(" ".join([str(limit), *map(sha256_of, paths)]).encode()).hexdigest()


def stream_table(path: Path, name: str, limit: int) -> Iterator[Row]:
    """Every row in order, a few hundred in memory at a time."""
    _check(path)
    if path.suffix.lower() == ".parquet":
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256)
    else:
        batches = _arrow_batches(path)
    number = 0
    for batch in batches:
        for index in range(batch.num_rows):
            yield _row(name, number, batch.slice(index, 1), limit)
            number += 1


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow file in either of the format's two framings."""
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
            return
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def open_hub(kind: Literal["hf", "ms"], path: str, subset: str | None, cache: Path, limit: int) -> TableRows:
    """A data set on a hub: its `train` split, or the only split it has.

    Raises:
        DataError: `hub_unavailable`, `no_train_split`.
        MissingExtra: ModelScope's package is not installed.
    """
    table = _load_hub(kind, path, subset, cache, streaming=False)
    digest = _hash_files([Path(file["filename"]) for file in table.cache_files], limit)
    return TableRows(path, digest, table.with_format("arrow"), limit)


def stream_hub(kind: Literal["hf", "ms"], path: str, subset: str | None) -> Iterator[Row]:
    """Rows of a data set on a hub, downloaded as they are needed."""
    table = _load_hub(kind, path, subset, None, streaming=True)
    for number, value in enumerate(table, 1):
        yield Row(Where(path, number), {key: to_json(item) for key, item in value.items()})


def _load_hub(kind: Literal["hf", "ms"], path: str, subset: str | None, cache: Path | None, *, streaming: bool) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    folder = str(cache / kind) if cache else None
    load = _modelscope() if kind == "ms" else datasets.load_dataset
    try:
        found = load(path, subset, streaming=streaming, cache_dir=folder)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        hub = {"hf": "Hugging Face", "ms": "ModelScope"}[kind]
        fix = (
            f"No local file or folder has this name, and the hub answered: {_first_line(error)}. "
            "Check the name and the network, or download the set and give its folder"
        )
        raise DataError(f"cannot get the data set from {hub}", where=path, fix=fix, code="hub_unavailable") from error
    if not isinstance(found, dict):
        return found
    splits = {str(split): table for split, table in found.items()}
    if "train" not in splits and len(splits) != 1:
        fix = f"It has: {', '.join(splits)}"
        raise DataError("the data set has no train split", where=path, fix=fix, code="no_train_split")
    return splits.get("train", next(iter(splits.values())))


def _modelscope() -> Callable[..., Any]:
    """ModelScope's loader, with the signature and the results of `datasets.load_dataset`."""
    try:
        from modelscope.msdatasets import MsDataset  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise MissingExtra("modelscope", "hub", what_for="A data set on ModelScope (ms::)") from error

    def unwrapped(table: Any) -> Any:
        return table.ds_instance if isinstance(table, MsDataset) else table

    def load(path: str, subset: str | None, *, streaming: bool, cache_dir: str | None) -> Any:
        found = MsDataset.load(path, subset_name=subset, use_streaming=streaming, cache_dir=cache_dir)
        return (
            {split: unwrapped(table) for split, table in found.items()} if isinstance(found, dict) else unwrapped(found)
        )

    return load


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
