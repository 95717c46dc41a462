"""A JSON-lines file with a line for every row of a data set, made over several commands by one model.

Each line has the `index` of its row.  Which model and settings make the lines stands in a hidden file beside it, so
that those of an earlier model are not taken for those of the one that is asked now.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.base.rundir import RunDir, write_atomic

_BEGINS = b'{"index":'


def other_results(result: Path, what: str) -> ConfigError:
    """The error for a file whose lines are no results of what is asked now."""
    fix = "Give another --result_path, or remove the file to begin anew"
    return ConfigError(what, where=str(result), code="other_results", fix=fix)


def leave_others_alone(result: Path, dataset: str) -> None:
    """Make sure that a file is ours to write into: it is not there yet, or holds nothing but lines of results.

    Args:
        dataset: what is read, which nothing may be written to.

    Raises:
        ConfigError: it is a folder or a device (`bad_config`), the data set itself (`would_overwrite`), or somebody
            else's file (`other_results`).
    """
    if result.is_dir():
        raise ConfigError("is a folder", where=str(result), fix="Name a file in it as --result_path")
    if not result.exists():
        return
    if not result.is_file():  # a device may be read for ever
        raise ConfigError("is no file", where=str(result), fix="Results are read again to go on: name a file")
    read = [Path(name) for name in (dataset, dataset.rpartition("#")[0]) if name]
    if any(path.exists() and path.samefile(result) for path in read):
        what = f"this would write into the input {dataset}"
        raise ConfigError(what, where=str(result), code="would_overwrite", fix="Choose another name")
    with result.open("rb") as file:
        begins = file.read(len(_BEGINS))
    ours = _BEGINS.startswith(begins)  # a crash may have cut the first line
    if not ours or not all("index" in line for line in RunDir(result.parent).read_rows(result.name)):
        raise other_results(result, "holds lines that are no results")


def claim(result: Path, made_by: Mapping[str, Json]) -> None:
    """Say what makes the lines of a file from now on.

    Args:
        made_by: all that decides what a line says besides its row, in words for people.

    Raises:
        ConfigError: `result` has lines that something else made (`other_results`).
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    results = RunDir(result.parent)
    note = f".{result.name}.made_by.json"
    before = _noted(result.parent / note) if results.read_rows(result.name) else None
    now = orjson.loads(orjson.dumps(made_by))
    if before is not None and before != now:
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        changed = "; ".join(f"{name} was {_told(before.get(name))}, now {_told(now.get(name))}" for name in names)
        raise other_results(result, f"its lines were made otherwise: {changed}")
    results.write_json(note, now)


def standing(result: Path, count: int) -> dict[int, Mapping[str, Json]]:
    """The lines that need not be made again, by the index of their row; an error may have been mended since.

    Args:
        count: rows of the data set.

    Raises:
        ConfigError: a line is about a row that the data set does not have (`other_results`).
    """
    results = RunDir(result.parent)
    lines = [line for line in results.read_rows(result.name) if isinstance(line.get("index"), int)]
    last = max((_index(line) for line in lines), default=-1)
    if last >= count:
        raise other_results(
            result, f"this file is about another question set: it has a line for row {last}, and there are {count} rows"
        )
    return {_index(line): line for line in lines if "error" not in line}


def drop_errors(result: Path) -> None:
    """Take the lines of errors out, before their rows are tried again.  Raises RunError."""
    results = RunDir(result.parent)
    if any("error" in line for line in results.read_rows(result.name)):
        results.truncate_rows(result.name, lambda line: "error" not in line)


def put_in_order(result: Path) -> list[dict[str, Json]]:
    """Sort the lines by their rows, and give them.  Raises RunError."""
    lines = RunDir(result.parent).read_rows(result.name)
    ordered = sorted(lines, key=_index)
    if ordered != lines:
        write_atomic(result, b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in ordered))
    return ordered


def _index(line: Mapping[str, Json]) -> int:
    index = line.get("index")
    return index if isinstance(index, int) else -1


def _noted(path: Path) -> dict[str, Json] | None:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):  # a file that was brought here alone
        return None
    return found if isinstance(found, dict) else None


def _told(value: Json) -> str:
    return "unset" if value is None else orjson.dumps(value).decode() if not isinstance(value, str) else value
