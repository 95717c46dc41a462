"""From a row to its groups: read, check, encode, fit to the longest length, and count what happened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import orjson

from luthier.base.errors import DataError
from luthier.base.records import BadRow, Chat, Fault, Json, Record
from luthier.data.batch import Group, Tokens
from luthier.data.checks import RecordOptions, ignored_columns, to_record
from luthier.data.config import Overlong
from luthier.data.overlong import fit
from luthier.data.row import Row

FORMAT = 3
"""Part of every fingerprint: raise it when the meaning of encoded numbers changes."""
TEXT_KEPT = 2000
"""Characters of a rejected row that are kept for people to read."""

Rejected = dict[str, Json]
"""A line of rejected.jsonl: file, line, code, path, message, row."""


@dataclass(slots=True)
class Facts:
    """What happened to the rows of a set, for its report."""

    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    repaired: dict[str, int] = field(default_factory=dict[str, int])
    truncated: int = 0
    split: int = 0
    stopped: int = 0
    """Kept rows whose last trained token is a stop token."""
    chats: int = 0
    trained: int = 0
    """Tokens with a weight."""
    ignored: list[str] = field(default_factory=list[str])
    """Columns that have no part in a record."""
    rejected: list[Rejected] = field(default_factory=list[Rejected])

    def add(self, other: Facts) -> None:
        """Take in the facts of another shard."""
        for name in ("rows", "kept", "truncated", "split", "stopped", "chats", "trained"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.dropped, other.dropped), (self.repaired, other.repaired)):
            for code, count in theirs.items():
                mine[code] = mine.get(code, 0) + count
        self.ignored += [name for name in other.ignored if name not in self.ignored]
        self.rejected += other.rejected


@dataclass(frozen=True)
class Encoding:
    """How rows become groups.  Everything but the callable enters the cache's keys; `key` stands for it."""

    encode: Callable[[Record], Group | None]
    key: str
    options: RecordOptions
    max_length: int
    overlong: Overlong
    stop_ids: frozenset[int]

    @property
    def fingerprint(self) -> str:
        """Hash of all of it."""
        parts = [FORMAT, self.key, asdict(self.options), self.max_length, self.overlong, sorted(self.stop_ids)]
        return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()

    def groups(self, row: Row, facts: Facts) -> tuple[list[Group], Record | None]:
        """The groups of one row, counted in `facts`.

        Raises:
            DataError: the row's fault, under the policy `strict`.
        """
        facts.rows += 1
        record, repairs = to_record(row, self.options)
        for repair in repairs:
            facts.repaired[repair.code] = facts.repaired.get(repair.code, 0) + 1
        if isinstance(record, Fault):
            return self._reject(record, row, facts), None
        try:
            group = self.encode(record)
        except BadRow as error:
            return self._reject(error.fault, row, facts), None
        if group is None:
            what = "no token of this row would be trained" if record.weight else "its weight is 0"
            fault = Fault("nothing_to_train", record.where, what)
            return self._reject(fault, row, facts), None
        groups, outcome = fit(group, self.max_length, self.overlong)
        if not groups:
            what = f"{len(group)} tokens are more than max_length {self.max_length}"
            if outcome == "no_target_left":
                what += ", and no trained token would be left"
            return self._reject(Fault(outcome, record.where, what), row, facts), None
        facts.kept += 1
        facts.ignored += [name for name in ignored_columns(row, self.options) if name not in facts.ignored]
        facts.chats += isinstance(record, Chat) and bool(self.stop_ids)  # elsewhere no answer is to end
        facts.truncated += outcome == "truncated"
        facts.split += outcome == "split"
        facts.stopped += any(self._stops(tokens) for group in groups for tokens in group.sequences)
        facts.trained += sum(int((tokens.weights != 0).sum()) for group in groups for tokens in group.sequences)
        return groups, record

    def _stops(self, tokens: Tokens) -> bool:
        # The last but one counts too: when all of a chat is trained, ChatML's line break comes behind the stop.
        ends = tokens.ids[np.flatnonzero(tokens.weights)[-2:]].tolist()
        return any(end in self.stop_ids for end in ends)

    def _reject(self, fault: Fault, row: Row, facts: Facts) -> list[Group]:
        if self.options.bad_rows == "strict" and fault.code not in ("too_long", "no_target_left", "nothing_to_train"):
            fix = "Repair the row, or use --bad_rows fix to repair or drop such rows"
            raise DataError(fault.message, where=f"{fault.where} {fault.path}".strip(), code=fault.code, fix=fix)
        facts.dropped[fault.code] = facts.dropped.get(fault.code, 0) + 1
        text = None if isinstance(row.value, Fault) else orjson.dumps(row.value).decode(errors="replace")[:TEXT_KEPT]
        facts.rejected.append(
            {
                "file": fault.where.file,
                "line": fault.where.line,
                "code": fault.code,
                "path": fault.path,
                "message": fault.message,
                "row": text,
            }
        )
        return []
