"""What recombining draws from: sentences of rows by their label, and tagged spans by their kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from luthier.base.records import Json
from luthier.prepare.frame import Frame
from luthier.prepare.identity import key_of
from luthier.prepare.labels import label_of
from luthier.prepare.parcel import Batch, Parcel, packed
from luthier.prepare.tagged import looks_tagged, take_apart
from luthier.prepare.view import fields
from luthier.prepare.words import sentences

Pool = Mapping[str, Sequence[Any]]
_POOL = 300
"""Sentences or spans of each label that are held."""
_LONGEST = 500


@dataclass(frozen=True)
class _Collect:
    """Sentences by class, and spans by kind, as lines of [key, hash, content]."""

    label: str

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            for key, content in _contents(item.value, self.label):
                line = orjson.dumps(content)
                if len(line) <= _LONGEST:
                    held = packed([key, key_of(key.encode() + line).hex(), content])
                    parcel.keep_line(item.file, item.line, held, "pool")
        return parcel


def _contents(value: Mapping[str, Json], label: str) -> Iterator[tuple[str, Any]]:
    tagged = take_apart(value)
    if tagged is not None:
        for block in tagged.blocks:
            if block.kind:
                tags: list[Json] = list(block.tags) if tagged.tags else [block.spans[0][2]]
                yield f"{tagged.tags or tagged.spans}:{block.kind}", [list(block.tokens), tags]
        return
    kind = label_of(value, label)
    if kind is not None and not looks_tagged(value):
        for field in fields(value):
            if field.use == "text":
                yield f"text:{kind}", sentences(field.text)


def read_pool(rows: Frame, label: str) -> Pool:
    """A bounded draw of sentences and spans, the same however the rows were cut into chunks."""
    found: dict[str, dict[str, Any]] = {}
    for parcel in rows.scan(_Collect(label), "Collecting"):
        for key, mark, content in parcel.values("pool"):
            held = found.setdefault(key, {})
            held[mark] = content
            if len(held) > 4 * _POOL:
                found[key] = {name: held[name] for name in sorted(held)[:_POOL]}
    return {key: [held[name] for name in sorted(held)[:_POOL]] for key, held in found.items()}
