"""The texts of a row changed by rules, each change counted with an example."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.base.records import Where
from luthier.prepare.classical import Classical
from luthier.prepare.markup import LINE_RULES
from luthier.prepare.mend import Repair
from luthier.prepare.parcel import EXAMPLES, Tally, Value
from luthier.prepare.personal import Kind, find, mask
from luthier.prepare.view import Field, rewrite

_ENDS_MATTER = ("prompt", "completion")
"""Columns that are joined without anything between, so that the white space at their ends is part of the data."""
_SHOWN, _BEFORE = 140, 20


@dataclass(frozen=True)
class Rewriting:
    """What is done to every text, in this order."""

    repairs: tuple[Repair, ...] = ()
    lines: tuple[str, ...] = ()
    """Names in LINE_RULES.  They are for documents: texts of chats and questions are left alone."""
    kinds: tuple[Kind, ...] = ()
    mask_text: str = "<{kind}>"
    classical: Classical = field(default_factory=Classical)

    def applied(self, value: Value, where: Where, tally: Tally) -> tuple[Value, str]:
        """The row with its texts rewritten, and the name of a field of which nothing is left, if there is one."""
        texts = _Texts(self, where, tally)
        return rewrite(value, texts.change), texts.emptied


class _Texts:
    """The texts of one row."""

    __slots__ = ("emptied", "rules", "tally", "where")

    def __init__(self, rules: Rewriting, where: Where, tally: Tally):
        self.rules, self.where, self.tally, self.emptied = rules, where, tally, ""

    def change(self, field: Field) -> str:
        text, rules = field.text, self.rules
        for repair in rules.repairs:
            if repair.needed(text):
                text = self._noted(repair.name, field, text, repair.apply(text))
        if rules.lines and field.use == "text" and field.path[0] not in ("messages", "conversations", "conversation"):
            for name in rules.lines:
                text = self._noted(name, field, text, LINE_RULES[name](text))
        if rules.kinds:
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
