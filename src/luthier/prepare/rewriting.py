"""The texts of a row changed by rules, each change counted with an example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Where
from luthier.prepare.classical import Classical
from luthier.prepare.mend import Repair
from luthier.prepare.parcel import EXAMPLES, Item, Tally, Value
from luthier.prepare.personal import SIGNS, Kind, find, mask
from luthier.prepare.signs import either, holding
from luthier.prepare.view import Field, rewrite, texts_of_all

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
        texts = texts_of_all(values)
        marks = self._marks([text for some in texts for text in some])
        sizes = np.array([len(some) for some in texts], np.int64)
        ends = np.cumsum(sizes)
        starts = ends - sizes
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(marks != 0)])
        marked = (before[ends] > before[starts]).tolist()
        for number, (value, item) in enumerate(zip(values, items, strict=True)):
            if marked[number]:
                changed = _Texts(self, item.where, tally, marks[starts[number] : ends[number]].tolist())
                yield rewrite(value, changed.change), changed.emptied
            else:
                yield value, ""

    def _marks(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """What each text may need, int64 [texts]: a bit for each repair, one for masks, one for classical rules, and
        one for each rule of lines."""
        kinds = either(list(dict.fromkeys(SIGNS[kind] for kind in self.kinds)))
        signs = [*(repair.sign for repair in self.repairs), kinds, None if self.classical else ""]
        marks = np.zeros(len(texts), np.int64)
        for bit, sign in enumerate(signs):
            if sign is None:
                marks |= 1 << bit
        known = [sign for sign in signs if sign]
        # nearly all texts have none of the signs; which of them the others have is asked of those alone
        some = np.flatnonzero(holding(texts, either(known) or "")) if known else np.empty(0, np.int64)
        suspects = [texts[at] for at in some.tolist()]
        for bit, sign in enumerate(signs):
            if sign and suspects:
                marks[some[holding(suspects, sign)]] |= 1 << bit
        for bit, rule in enumerate(self.lines, len(signs)):
            marks[holding(texts, rule.sign) if rule.sign is not None else slice(None)] |= 1 << bit
        return marks


class _Texts:
    """The texts of one row."""

    __slots__ = ("_marks", "emptied", "rules", "tally", "where")

    def __init__(self, rules: Rewriting, where: Where, tally: Tally, marks: Sequence[int]):
        self.rules, self.where, self.tally, self.emptied = rules, where, tally, ""
        self._marks = iter(marks)

    def change(self, field: Field) -> str:
        """The new text of a field; the fields must come in the order of the marks."""
        text, rules, marks = field.text, self.rules, next(self._marks)
        if not marks:
            return text
        for repair in rules.repairs:
            # a repair may bring out what a later one looks for
            if marks & 1 or (text is not field.text and repair.needed(text)):
                text = self._noted(repair.name, field, text, repair.apply(text))
            marks >>= 1
        masks, marks = marks & 1, marks >> 2
        if rules.lines and field.use == "text" and field.path[0] not in ("messages", "conversations", "conversation"):
            for rule in rules.lines:
                if marks & 1 or (text is not field.text and rule.needed(text)):
                    text = self._noted(rule.name, field, text, rule.apply(text))
                marks >>= 1
        if rules.kinds and (masks or text is not field.text):
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
