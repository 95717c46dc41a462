"""What one look at rows finds out: shapes, columns, lengths, languages, and what is wrong with texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json
from luthier.data.formats import other_task, shape_of
from luthier.prepare.gaps import is_missing, number_of
from luthier.prepare.identity import RowKeys
from luthier.prepare.language import identify
from luthier.prepare.markup import MARKUP_SIGN, has_markup
from luthier.prepare.mend import DAMAGE_SIGN, is_damaged, repairs
from luthier.prepare.parcel import Batch, Item, Parcel, Value
from luthier.prepare.personal import SIGNS, find, mask
from luthier.prepare.signs import holding
from luthier.prepare.torn import ENDS, signs, tags_of, torn_at
from luthier.prepare.view import fields, text_of, texts_of_all

USES = ("question", "answer")
SEPARATOR = "\x1f"
"""Between the parts of a count's name: what was counted, and which."""
_REPAIRS = repairs(encoding=True, unicode="nfc", controls=True, whitespace="trim", width="keep", chinese="keep")
_SIGNS = "|".join(
    [*(repair.sign for repair in _REPAIRS if repair.sign), MARKUP_SIGN, DAMAGE_SIGN, *dict.fromkeys(SIGNS.values())]
)
_SHOWN, _BEFORE = 120, 30


@dataclass(frozen=True)
class Census:
    """First look.

    Columns: `key` uint64 [rows, 2]; `characters` [rows], and of questions and answers each; `han` [rows], whether the
    row is Chinese.  Counts: `shape`, `task`, `language`, the `characters` of Chinese rows (`zh`) and of others, and for
    every column `seen`, `missing`, `number`, `text`, `list`, `object`, `truth`; the troubles of texts under `trouble`,
    with examples that show no personal data; the signs of a scheme of tags under `tag`, and under `torn` the rows that
    break one whose entities are `open`, or `closed`, with examples under `torn open` and `torn closed`.
    """

    def __call__(self, batch: Batch) -> Parcel:
        parcel = RowKeys()(batch)
        lengths = {name: np.zeros(len(batch.items), np.int32) for name in ("characters", *USES)}
        han = np.zeros(len(batch.items), bool)
        suspects = _suspects([item.value for item in batch.items])
        for number, item in enumerate(batch.items):
            value = item.value
            _count(parcel, "shape", shape_of(value) or "unknown")
            _count(parcel, "task", other_task(value) or "")
            text = text_of(value)
            lengths["characters"][number] = len(text)
            found = identify(text)
            han[number] = found.code == "zh"
            _count(parcel, "language", found.code)
            _count(parcel, "characters", "zh" if han[number] else "other", len(text))
            for name, cell in value.items():
                _count(parcel, "seen", name)
                _count(parcel, "missing" if is_missing(cell) else _kind(cell), name)
            tags = tags_of(value)
            if tags:
                self._tags(tags, item, parcel)
            for field in fields(value):
                if field.use in USES:
                    lengths[field.use][number] += len(field.text)
                if number in suspects:
                    self._troubles(field.text, field.name, item, parcel)
        parcel.columns |= {**lengths, "han": han}
        return parcel

    def _tags(self, tags: list[str], item: Item, parcel: Parcel) -> None:
        for sign in signs(tags):
            _count(parcel, "tag", sign)
        for ends in ENDS:
            found = torn_at(tags, ends)
            if found is not None:
                _count(parcel, "torn", ends)
                parcel.tally.example(f"torn {ends}", item.where, **found)

    def _troubles(self, text: str, name: str, item: Item, parcel: Parcel) -> None:
        for repair in _REPAIRS:
            if repair.needed(text):
                after = repair.apply(text)
                if after != text:
                    shown = {"before": _masked(text, 0), "after": _masked(after, 0)}
                    _trouble(parcel, repair.name, item, field=name, **shown)
        if has_markup(text):
            _trouble(parcel, "html", item, field=name, text=_masked(text, 0))
        if is_damaged(text):
            _trouble(parcel, "damaged", item, field=name, text=_masked(text, 0))
        for finding in find(text):
            _trouble(parcel, finding.kind, item, field=name, masked=_masked(text, finding.start))


def _suspects(values: Sequence[Value]) -> set[int]:
    """Which rows have a text with a sign of any trouble, by number; most have none."""
    texts = texts_of_all(values)
    found = holding([text for some in texts for text in some], _SIGNS)
    owners = np.repeat(np.arange(len(texts)), np.array([len(some) for some in texts], np.int64))
    return set(owners[found].tolist())


def _masked(text: str, near: int) -> str:
    """What a text says around a place, without personal data."""
    findings = find(text)
    before = mask(text[:near], [finding for finding in findings if finding.end <= near])
    behind = [f._replace(start=f.start - near, end=f.end - near) for f in findings if f.start >= near]
    return before[-_BEFORE:] + mask(text[near:], behind)[:_SHOWN]


def _count(parcel: Parcel, what: str, which: str, n: int = 1) -> None:
    parcel.tally.count(f"{what}{SEPARATOR}{which}", n)


def _trouble(parcel: Parcel, name: str, item: Item, **shown: Json) -> None:
    _count(parcel, "trouble", name)
    parcel.tally.example(name, item.where, **shown)


def _kind(cell: Json) -> str:
    if isinstance(cell, bool):
        return "truth"
    if isinstance(cell, list):
        return "list"
    if isinstance(cell, dict):
        return "object"
    return "text" if np.isnan(number_of(cell)) else "number"


@dataclass(frozen=True)
class Measure:
    """Second look: the numbers in some columns [rows], NaN where there is none, and the `tokens` of some rows alone.

    Args:
        rows: of all, [total, how many of them are counted].
    """

    numbers: tuple[str, ...]
    tokenizer: str
    rows: tuple[int, int]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for name in self.numbers:
            parcel.columns[f"number {name}"] = np.array([number_of(item.value.get(name)) for item in batch.items])
        encode = _tokenizer(self.tokenizer)
        some = (evenly(*self.rows, batch.first, batch.first + len(batch.items)) - batch.first).tolist()
        parcel.columns["tokens"] = np.array([tokens_of(batch.items[at].value, encode) for at in some], np.int32)
        return parcel


def evenly(total: int, count: int, start: int, end: int) -> NDArray[np.int64]:
    """Which rows of [start, end) are among `count` of `total` that lie evenly over all of them, in order."""
    step = (total - 1) / (count - 1) if count > 1 else 0.0
    low, high = (int(start / step), int(end / step) + 2) if step else (0, 1)
    numbers = np.arange(max(0, low - 1), min(count, high))
    rows = np.unique(np.where(numbers == count - 1, (total - 1) * (count > 1), numbers * step).astype(np.int64))
    return rows[(rows >= start) & (rows < end)]


def tokens_of(value: Value, tokenizer: Any) -> int:
    """Tokens of a row's text, without those that a chat template adds."""
    return len(tokenizer.encode(text_of(value), add_special_tokens=False).ids)


@cache
def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)
