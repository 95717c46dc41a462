"""JSON lines as a Parquet file, in bounded memory.

A column gets a type of its own when reading it back gives the same values.  A column whose values do not agree in
type, or whose inner objects have different keys, is written as JSON text, which every reader of ours understands:
Parquet would fill the missing keys with nulls, and a tool call would get arguments nobody gave it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import cast

import orjson
import pyarrow as pa
import pyarrow.parquet

from luthier.base.records import Json

_ROWS = 5000
Kind = str | tuple[str, "Kind | None"] | tuple[str, dict[str, "Kind | None"]]
"""A type: null is None; "bool", "int", "float", "text"; ("list", of); ("object", keys)."""


class _Mixed(Exception):
    """Two values that have no type in common."""


def write_parquet(path: Path) -> tuple[str, ...]:
    """Replace a file of JSON lines by the same rows as Parquet.

    Returns:
        The columns that became JSON text.
    """
    kinds: dict[str, Kind | None] = {}
    mixed: dict[str, None] = {}
    for row in _rows(path):
        for name, value in row.items():
            if name in mixed:
                continue
            try:
                kinds[name] = _join(kinds.get(name), _kind(value), depth=0)
            except _Mixed:
                mixed[name] = None
    fields = [pa.field(name, pa.string() if name in mixed else _arrow(kind)) for name, kind in kinds.items()]
    fields += [pa.field(name, pa.string()) for name in mixed if name not in kinds]
    schema = pa.schema(fields)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as made:
        staged = Path(made.name)
    try:
        with pyarrow.parquet.ParquetWriter(staged, schema, compression="zstd") as writer:
            rows = _rows(path)
            while block := list(islice(rows, _ROWS)):
                writer.write_table(pa.Table.from_pylist([_as_text(row, mixed) for row in block], schema=schema))
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    return tuple(mixed)


def _rows(path: Path) -> Iterator[dict[str, Json]]:
    with path.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)


def _as_text(row: dict[str, Json], mixed: Mapping[str, None]) -> dict[str, Json]:
    return {
        name: orjson.dumps(value).decode() if name in mixed and value is not None else value
        for name, value in row.items()
    }


def _kind(value: Json) -> Kind | None:
    match value:
        case None:
            return None
        case bool():
            return "bool"
        case int():
            return "int" if -(2**63) <= value < 2**63 else "float"
        case float():
            return "float"
        case str():
            return "text"
        case list():
            of: Kind | None = None
            for item in value:
                of = _join(of, _kind(item), depth=1)
            return ("list", of)
        case dict():
            if not value:
                raise _Mixed  # Parquet has no object without keys
            return ("object", {key: _kind(item) for key, item in value.items()})


def _join(one: Kind | None, other: Kind | None, depth: int) -> Kind | None:
    """The type of values of either type; `depth` 1 is the items of a column's lists, whose keys may differ, because
    every reader takes a null in a message for an absent key."""
    if one is None or one == other:
        return other if one is None else one
    if other is None:
        return one
    if isinstance(one, str) or isinstance(other, str):
        if {one, other} == {"int", "float"}:
            return "float"
        raise _Mixed
    if one[0] != other[0]:
        raise _Mixed
    if one[0] == "list":
        return ("list", _join(cast("Kind | None", one[1]), cast("Kind | None", other[1]), depth + 1))
    mine, theirs = cast("dict[str, Kind | None]", one[1]), cast("dict[str, Kind | None]", other[1])
    if mine.keys() != theirs.keys() and depth != 1:
        raise _Mixed
    return ("object", {key: _join(mine.get(key), theirs.get(key), 9) for key in {**mine, **theirs}})


def _arrow(kind: Kind | None) -> pa.DataType:
    match kind:
        case None:
            return pa.null()
        case "bool":
            return pa.bool_()
        case "int":
            return pa.int64()
        case "float":
            return pa.float64()
        case str():
            return pa.string()
        case (_, dict() as keys):
            return pa.struct([pa.field(key, _arrow(of)) for key, of in keys.items()])
        case (_, of):
            return pa.list_(_arrow(cast("Kind | None", of)))
