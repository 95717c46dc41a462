"""From a row to a record that can be trained on: columns, shape, sense, placeholders, and keys to find duplicates."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import cast

import orjson

from luthier.base.errors import DataError
from luthier.base.records import (
    BadRow,
    Chat,
    Fault,
    Json,
    Judged,
    Labelled,
    Message,
    Pair,
    Prompt,
    Record,
    Similar,
    Tagged,
    Task,
    Text,
    Where,
)
from luthier.data.config import BadRows, DataConfig
from luthier.data.formats import PLAIN_SHAPES, extra_columns, other_task, shape_of
from luthier.data.media import may_have_media
from luthier.data.messages import Reader
from luthier.data.row import Row
from luthier.data.tasks import read_as, task_of

_PLACEHOLDER = re.compile(r"\{\{(NAME|AUTHOR|name|author)\}\}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_CODE = re.compile(r"```|</?\w")


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What the user asked of every row.  The fields are DataConfig's of the same names."""

    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    system: str | None = None
    self_name: tuple[str, ...] = ()
    self_author: tuple[str, ...] = ()
    bad_rows: BadRows = "fix"
    task: Task | None = "language"
    """What rows are read for; None takes what each is evidently meant for."""

    @classmethod
    def from_config(cls, config: DataConfig, task: Task | None = "language") -> RecordOptions:
        """The options of a data config."""
        return cls(config.columns, config.system, config.self_name, config.self_author, config.bad_rows, task)


def to_record(row: Row, options: RecordOptions) -> tuple[Record | Fault, tuple[Fault, ...]]:
    """A row as a record, or the fault that keeps it from being one; and what was repaired on the way.

    Under `fix`, what has one safe repair is repaired: keys in messages that mean nothing are ignored, numbers become
    text, a weight on a user turn is ignored, turns after the last answer are left out.  Otherwise any of these is a
    fault.

    Raises:
        DataError: `missing_name` when a row has placeholders for a name or author that was not given.
    """
    if isinstance(row.value, Fault):
        return row.value, row.repairs
    repairs: list[Fault] = []
    reader = Reader(row.where, repairs if options.bad_rows == "fix" else None)
    value = renamed(row.value, options.columns)
    try:
        record = read_as(value, row.where, reader.repairs, options.task)
        if isinstance(record, Chat | Judged):
            messages = _sensible(reader, record.messages)
            messages = _with_names(messages, value.get("tag"), options, row.where)
            if options.system is not None and messages[0].role != "system":
                messages = (Message("system", options.system), *messages)
            record = replace(record, messages=messages)
    except BadRow as error:
        return error.fault, row.repairs
    return record, (*row.repairs, *repairs)


def shape_fault(value: Mapping[str, Json], where: Where | None) -> Fault | None:
    """What a row says against its own shape, or else the first thing that reading it would repair; None when it is fine
    or has no shape we know.

    Args:
        where: for the fault; it may be left out to learn whether there is one.
    """
    if _is_plain(value):
        return None
    repairs: list[Fault] = []
    reader = Reader(where or _NOWHERE, repairs)
    try:
        record = read_as(value, reader.where, repairs)
        if isinstance(record, Chat | Judged):
            _sensible(reader, record.messages)
    except BadRow as error:
        return None if error.fault.code in _NO_SHAPE else error.fault
    return next(iter(repairs), None)


def _is_plain(value: Mapping[str, Json]) -> bool:
    """Whether a row is one of the shapes without inner parts and obviously sound; most rows are, and it is quick."""
    texts = _plain_columns(tuple(value))
    return texts is not None and _all_said([[value[name]] for name in texts])


def are_plain(values: Sequence[Mapping[str, Json]]) -> list[bool]:
    """Which rows are obviously free of a `shape_fault`: [rows].  False says nothing about a row."""
    columns = list(map(tuple, values))
    plain = {names: _plain_columns(names) for names in set(columns)}
    for names, texts in plain.items():
        rows = [value for value, own in zip(values, columns, strict=True) if own == names]
        if texts is not None and not _all_said([[row[name] for row in rows] for name in texts]):
            # some of them are not: look at each
            return [_is_plain(value) for value in values]
    return [plain[names] is not None for names in columns]


def _all_said(columns: Sequence[Sequence[Json]]) -> bool:
    """Whether all values are text, and none in the last column is blank."""
    if any(set(map(type, column)) != {str} for column in columns):
        return False
    last = cast("Sequence[str]", columns[-1])
    return not ("" in last or any(map(str.isspace, last)))


@lru_cache(maxsize=4096)
def _plain_columns(columns: tuple[str, ...]) -> tuple[str, ...] | None:
    """The columns of a row that must be text, the one that must not be empty last; None if there is more to look at."""
    if may_have_media(columns):
        return None
    row: dict[str, Json] = dict.fromkeys(columns, "x")
    shape = shape_of(row)
    if shape not in PLAIN_SHAPES or task_of(row) != "language" or other_task(row):
        return None
    used = [name for name in columns if name not in extra_columns(row)]
    wanted = PLAIN_SHAPES[shape]
    return tuple(sorted(used, key=wanted.index)) if all(name in wanted for name in used) else None


_NOWHERE = Where("", 0)
_NO_SHAPE = ("unknown_shape", "wrong_task", "needs_media")


def ignored_columns(row: Row, options: RecordOptions) -> tuple[str, ...]:
    """Columns of a row that have no part in its record."""
    if isinstance(row.value, Fault) or options.task != "language":
        return ()
    return tuple(key for key in extra_columns(renamed(row.value, options.columns)) if key != "tag")


def renamed(value: dict[str, Json], columns: Mapping[str, str]) -> dict[str, Json]:
    """The row under new names, {old: new}; a renamed column displaces one that had the name before."""
    moved = {columns[key]: item for key, item in value.items() if key in columns}
    if not moved:
        return value
    return {**{key: item for key, item in value.items() if key not in columns}, **moved}


def _sensible(reader: Reader, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Check the order of turns; leaves out turns behind the last answer when that repair is wanted.

    Raises:
        BadRow: `empty_messages`, `only_system`, `no_assistant`, `late_system`, `tool_without_call`,
            `empty_assistant`, `ends_with_user`, `ends_with_tool`.
    """
    if not messages:
        raise reader.fail("empty_messages", "the chat has no messages")
    roles = {message.role for message in messages}
    if roles == {"system"}:
        raise reader.fail("only_system", "the chat has only a system message")
    if "assistant" not in roles:
        raise reader.fail("no_assistant", "the chat has no answer to learn from")
    calling = False
    for number, message in enumerate(messages):
        path = f"messages[{number}]"
        if message.role == "system" and number > 0:
            raise reader.fail("late_system", "a system message must come first", path)
        if message.role == "tool" and not calling:
            raise reader.fail("tool_without_call", "a tool answers, but no tool was called", path)
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise reader.fail("empty_assistant", "the assistant says nothing", path)
        calling = bool(message.tool_calls) or (calling and message.role == "tool")
    while messages[-1].role != "assistant":
        role = messages[-1].role
        what = f"the chat ends with a turn of {role!r} that nobody answers"
        reader.repair(f"ends_with_{role}", what, f"messages[{len(messages) - 1}]")
        messages = messages[:-1]
    return messages


def _with_names(messages: tuple[Message, ...], tag: Json, options: RecordOptions, where: Where) -> tuple[Message, ...]:
    """Fill the placeholders of self-cognition rows, in Chinese or in English.

    `{{name}}` is also what templates of web pages look like, so the lower-case form counts only in turns without code.
    """
    if not any("{{" in message.content for message in messages):
        return messages
    chinese = tag == "zh" or (tag != "en" and any(_CHINESE.search(message.content) for message in messages))

    def fill(found: re.Match[str]) -> str:
        if found[1].islower() and _CODE.search(found.string):
            return found[0]
        name = found[1].lower() == "name"
        given = options.self_name if name else options.self_author
        if not given:
            fix = f"Give {'--model_name' if name else '--model_author'} (one value, or two: Chinese and English)"
            what = f"the row has the placeholder {found[0]}"
            raise DataError(what, where=str(where), fix=fix, code="missing_name")
        return given[0 if chinese else -1]

    return tuple(replace(message, content=_PLACEHOLDER.sub(fill, message.content)) for message in messages)


def identity_key(record: Record) -> bytes:
    """Hash of what a record says, 16 bytes; where it stands and its weights do not count."""
    return _hash(_said(record))


def normalised_key(record: Record) -> bytes:
    """Hash of what a record says but for spelling variants (NFKC), case, white space and punctuation, 16 bytes.

    Records with equal keys are what the data report counts as near duplicates.
    """
    return _hash(_ignored().sub("", unicodedata.normalize("NFKC", _said(record)).casefold()))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


_BETWEEN = "\ue000"
"""Keeps what different turns say apart; private-use, so normalising leaves it alone."""


def _said(record: Record) -> str:
    """Everything a record says, in one string."""
    if isinstance(record, Text):
        return record.text
    if isinstance(record, Chat):
        return _BETWEEN.join(_turns(record.messages, record.tools))
    said = [type(record).__name__]
    match record:
        case Pair():
            for messages in (record.prompt, record.chosen, record.rejected):
                said += _turns(messages, record.tools)
        case Judged():
            said += [str(record.good), *_turns(record.messages, record.tools)]
        case Labelled():
            said += [record.text, record.pair or "", orjson.dumps(record.label).decode()]
        case Tagged():
            said += [*record.tokens, *record.tags]
        case Similar():
            said += [record.query, *record.positives, _BETWEEN, *record.negatives, str(record.score)]
        case Prompt():
            said += [*_turns(record.messages, record.tools), record.action or "", orjson.dumps(record.answer).decode()]
    return _BETWEEN.join(said)


def _turns(messages: tuple[Message, ...], tools: tuple[Mapping[str, Json], ...]) -> list[str]:
    parts = [orjson.dumps(tools).decode()] if tools else [""]
    for message in messages:
        calls = [call["function"] for call in message.tool_calls]
        parts += (message.role, message.content, message.reasoning or "", orjson.dumps(calls).decode() if calls else "")
    return parts


@cache
def _ignored() -> re.Pattern[str]:
    """Punctuation (P), separators (Z), control and formatting characters (Cc, Cf)."""
    characters = (chr(code) for code in range(0xD800))  # what lies above is private, or rare beyond counting
    wanted = ("P", "Z", "Cc", "Cf")
    found = "".join(character for character in characters if unicodedata.category(character).startswith(wanted))
    return re.compile(f"[{re.escape(found)}]+")
