"""Reading the files of a data set for evaluation: rows as mappings of text, folders as subsets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Fault, Json
from luthier.data.config import DataConfig
from luthier.data.sources import DatasetSpec, open_rows

_ENDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Line:
    """One row, and where it stands."""

    where: str
    values: Mapping[str, Json]

    def text(self, name: str) -> str:
        """A field as text; "" where it is absent or null."""
        value = self.values.get(name)
        return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def wrong(self, what: str, fix: str | None = None) -> DataError:
        """The error for a row that cannot be asked."""
        return DataError(what, where=self.where, fix=fix, code="bad_question")


def read(path: Path, limit: int | None = None) -> list[Line]:
    """The rows of a table or JSON-lines file, the first `limit` of them.

    Raises:
        DataError: the file or a row of it cannot be read; an evaluation leaves nothing out.
    """
    rows = open_rows(DatasetSpec(str(path), "local", str(path)), DataConfig())
    lines: list[Line] = []
    for number in range(len(rows) if limit is None else min(limit, len(rows))):
        row = rows[number]
        if isinstance(row.value, Fault):
            raise DataError(str(row.value.message), where=str(row.where), code=row.value.code)
        lines.append(Line(str(row.where), row.value))
    return lines


def read_json(path: Path) -> Any:
    """A file that is one JSON value.  Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), code="bad_json") from error


def subsets(
    folder: Path, wanted: tuple[str, ...], ending: str, dataset: str, ends: tuple[str, ...] = _ENDS
) -> dict[str, Path]:
    """Files `<subset><ending>.<csv|tsv|jsonl|...>` of a folder by subset, all or the wanted ones; or a single file.

    Raises:
        ConfigError: there are none, or not the wanted ones.
    """
    if folder.is_file():
        return {folder.name.removesuffix(folder.suffix).removesuffix(ending): folder}
    here = {path.name.removesuffix(path.suffix): path for path in sorted(folder.glob("*")) if path.suffix in ends}
    found = {name.removesuffix(ending): path for name, path in here.items() if name.endswith(ending)}
    missing = [name for name in wanted if name not in found]
    if missing or not found:
        raise ConfigError(
            f"no file {(missing or ['<subset>'])[0]}{ending}.csv (or {', '.join(ends[1:])}) for {dataset}",
            where=str(folder),
            code="no_subset",
            fix=f"There are: {', '.join(list(found)[:10])}" if found else "Look at local_path in --dataset_args",
        )
    return {name: found[name] for name in wanted} if wanted else found
