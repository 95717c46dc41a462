"""The texts of a row changed by rules, each change counted with an example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from luthier.base.records import Where
from luthier.prepare.classical import Classical
from luthier.prepare.mend import Repair
from luthier.prepare.parcel import EXAMPLES, Item, Tally, Value
from luthier.prepare.personal import SIGNS, Kind, find, mask
from luthier.prepare.signs import either, holding
from luthier.prepare.view import Field, rewrite, texts_of

_ENDS_MATTER = ("prompt", "completion")
"""Columns that are joined without anything between, so that the white space at their ends is part of the data."""
_SHOWN, _BEFORE = 140, 20


@dataclass(frozen=True)
class Rewriting:
    """What is done to every text, in this order."""

    repairs: tuple[Repair, ...] = ()
    lines: tuple[Repair, ...] = ()
    """Rules for documents: texts of chats and questions are left alone."""
    kinds: tuple[Kind, ...] = ()
    mask_text: str = "<{kind}>"
    classical: Classical = field(default_factory=Classical)

    def applied(self, values: Sequence[Value], items: Sequence[Item], tally: Tally) -> Iterator[tuple[Value, str]]:
        """Every row with its texts rewritten, and the name of a field of which nothing is left, if there is one.

        Args:
            items: what the values were made from; their places stand in the examples.
        """
        for value, item, marks in zip(values, items, self._marks(values), strict=True):
            if marks:
                texts = _Texts(self, item.where, tally, marks)
                yield rewrite(value, texts.change), texts.emptied
            else:
                yield value, ""

    def _marks(self, values: Sequence[Value]) -> list[int]:
        """What each row may need, in bits: the first one for everything but lines, then one for each rule of lines."""
        texts = [texts_of(value) for value in values]
        flat = [text for some in texts for text in some]
        owners = np.repeat(np.arange(len(texts)), [len(some) for some in texts])
        marks = np.zeros(len(values), np.int64)
        first = None if self.classical else either([repair.sign for repair in self.repairs] + self._kind_signs())
        for bit, sign in enumerate((first, *(rule.sign for rule in self.lines))):
            if sign is None:
                marks |= 1 << bit
            elif sign:
                marks[owners[holding(flat, sign)]] |= 1 << bit
        return marks.tolist()

    def _kind_signs(self) -> list[str | None]:
        return list(dict.fromkeys(SIGNS[kind] for kind in self.kinds))


class _Texts:
    """The texts of one row."""

    __slots__ = ("emptied", "lines", "marks", "rules", "tally", "where")

    def __init__(self, rules: Rewriting, where: Where, tally: Tally, marks: int):
        self.rules, self.where, self.tally, self.emptied = rules, where, tally, ""
        self.marks = marks
        # a repair may bring out what a rule of lines looks for
        self.lines = [rule for bit, rule in enumerate(rules.lines, 1) if marks & 1 or marks >> bit & 1]

    def change(self, field: Field) -> str:
        text, rules = field.text, self.rules
        if self.marks & 1:
            for repair in rules.repairs:
                if repair.needed(text):
                    text = self._noted(repair.name, field, text, repair.apply(text))
        if self.lines and field.use == "text" and field.path[0] not in ("messages", "conversations", "conversation"):
            for rule in self.lines:
                if rule.needed(text):
                    text = self._noted(rule.name, field, text, rule.apply(text))
        if self.marks & 1 and rules.kinds:
            text = self._masked(text)
        if rules.classical:
            text = self._noted("classical", field, text, rules.classical(text))
        if not text and field.use != "system" and field.text.strip():
            self.emptied = field.name
        return text

    def _noted(self, name: str, field: Field, before: str, after: str) -> str:
        if name == "whitespace" and len(field.path) == 1 and field.path[0] in _ENDS_MATTER and before.strip():
            start, end = len(before) - len(before.lstrip()), len(before.rstrip())
            after = before[:start] + after.strip() + before[end:]
        if before == after:
            return before
        self.tally.count(name)
        if len(self.tally.examples.get(name, ())) >= EXAMPLES:
            return after
        same = (at for at, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
        start = max(0, next(same, min(len(before), len(after))) - _BEFORE)
        shown = slice(start, start + _SHOWN)
        self.tally.example(name, self.where, field=field.name, before=before[shown], after=after[shown])
        return after

    def _masked(self, text: str) -> str:
        found = find(text, self.rules.kinds)
        if not found:
            return text
        after = mask(text, found, self.rules.mask_text)
        for finding in found:
            name = f"masked_{finding.kind}"
            self.tally.count(name)
            # what was masked is not shown: the report may go to other people than the data
            at = max(0, after.find(mask("x", [finding._replace(start=0, end=1)], self.rules.mask_text)) - _BEFORE)
            self.tally.example(name, self.where, after=after[at : at + _SHOWN])
        return after
