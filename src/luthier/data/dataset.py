"""From the data settings to the groups that are trained on, those that are held out, and the report on both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError, DataError, LuthierError
from luthier.base.records import Record, Task, Where
from luthier.data.batch import Group
from luthier.data.checks import RecordOptions
from luthier.data.config import DataConfig
from luthier.data.encode import Encoding, Facts, Rejected
from luthier.data.mix import mix_indices, replay_places, split_indices, take_indices
from luthier.data.report import DataReport, SetReport, overlap, set_report, totals
from luthier.data.row import Row, Rows
from luthier.data.sources import open_rows, parse_spec, stream_rows
from luthier.data.textfile import cache_root
from luthier.data.tokenize import encode_rows
from luthier.data.tokens import Groups, Kinds, Selected, TokenSet

Use = Literal["train", "validation"]
SAMPLED_ROWS = 1000
"""Rows of each streamed set that are looked at before training."""


@dataclass(frozen=True)
class Prepared:
    """Data that is ready to train on."""

    train: Groups
    """Of a streamed run: the groups of its first rows, for previews and reports."""
    validation: Groups | None
    report: DataReport
    rejected: list[Rejected]
    measures: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 2), np.float32))
    """Weight and difficulty of the row of each group that is trained on, [groups, 2]."""
    where: Callable[[int], Where | None] = lambda sample: None
    """Where the row of a validation sample stands; None if that can no longer be told."""


def together(parts: Sequence[Prepared]) -> Prepared:
    """The data of several tasks, whose groups tell theirs by their kind; of one task, its own."""
    if len(parts) == 1:
        return parts[0]
    nothing = Selected([], np.empty((0, 2), np.int64))
    judged = [nothing if part.validation is None else part.validation for part in parts]
    reports = [part.report for part in parts]
    notes = [report.template_note for report in reports if report.template_note]
    sets = [mine for report in reports for mine in report.sets]
    return Prepared(
        Kinds([part.train for part in parts]),
        Kinds(judged) if any(map(len, judged)) else None,
        replace(
            reports[0],
            sets=sets,
            overlap=sum(report.overlap for report in reports),
            template_note="; ".join(notes) or None,
            totals={use: totals(sets, use) for use in ("train", "validation")},
        ),
        [row for part in parts for row in part.rejected],
        np.concatenate([part.measures for part in parts]),
        _where_of_kinds(parts, judged),
    )


def _where_of_kinds(parts: Sequence[Prepared], judged: Sequence[Groups]) -> Callable[[int], Where | None]:
    kinds = Kinds(judged)
    return lambda sample: parts[kind := kinds.kind(sample)].where(sample - kinds.starts[kind])


def encoding_of(
    config: DataConfig,
    encode: Callable[[Record], Group | None],
    key: str,
    stop_ids: frozenset[int],
    max_length: int,
    task: Task = "language",
) -> Encoding:
    """How rows become groups under these settings."""
    assert config.overlong is not None, "the policy is filled in when the config is resolved"
    options = RecordOptions.from_config(config, task)
    return Encoding(encode, key, options, max_length, config.overlong, stop_ids)


def prepare(
    config: DataConfig, encoding: Encoding, *, template_note: str | None, seed: int, progress: Callable[[int], None]
) -> Prepared:
    """Read, check and encode every set, mix the training sets, hold rows out.

    Args:
        progress: told how many rows have been added.

    Raises:
        DataError: a set that cannot be read, or a faulty row under `strict`.
        ConfigError: a notation that is none.
    """
    reports: list[SetReport] = []
    train = [_encode(text, "train", config, encoding, seed, progress, reports) for text in config.datasets]
    held = [_encode(text, "validation", config, encoding, seed, progress, reports) for text in config.validation]
    picks, split = _hold_out(train, _picks(train), 0.0 if held else config.split_ratio, seed)
    if config.interleave:
        mine = [picks[picks[:, 0] == number] for number in range(len(train))]
        order = mix_indices([len(part) for part in mine], config.interleave, config.interleave_stop, seed)
        starts = np.cumsum([0, *(len(part) for part in mine)])
        picks = np.concatenate(mine)[starts[order[:, 0]] + order[:, 1]]
    replay = [_encode(text, "train", config, encoding, seed, progress, reports) for text in config.replay]
    picks, train = _with_replay(picks, train, replay, config.replay_ratio, seed)
    judged, split = (held, _picks(held)) if held else (train, split)
    validation = Selected([part.groups for part in judged], split) if len(split) else None
    shared = overlap(_names(train, picks), _names(judged, split))
    report = DataReport(
        sets=reports,
        overlap=shared,
        max_length=encoding.max_length,
        template_note=template_note,
        sampled=config.streaming,
        totals={use: totals(reports, use) for use in ("train", "validation")},
    )
    rejected = [row for part in (*train, *held) for row in part.groups.facts.rejected]
    chosen = Selected([part.groups for part in train], picks)
    return Prepared(chosen, validation, report, rejected, _measures(train, picks), _where(judged, split))


def _where(parts: Sequence[Encoded], picks: NDArray[np.int64]) -> Callable[[int], Where | None]:
    return lambda sample: parts[int(picks[sample, 0])].where(int(picks[sample, 1]))


def _with_replay(
    picks: NDArray[np.int64], train: list[Encoded], replay: list[Encoded], ratio: float, seed: int
) -> tuple[NDArray[np.int64], list[Encoded]]:
    """The picks with replayed ones among them, and all sets they come from."""
    if not replay:
        return picks, train
    general = _picks(replay)
    places = replay_places(len(picks), ratio)
    drawn = general[take_indices(len(general), len(places), seed)] if len(general) else general
    drawn = drawn + np.array([len(train), 0])
    return np.insert(picks, places[: len(drawn)], drawn, axis=0), [*train, *replay]


@dataclass(frozen=True)
class Encoded:
    """A set, its groups, and these in the order and number they are used."""

    groups: TokenSet
    order: NDArray[np.int64]
    source: Rows
    rows: NDArray[np.int64]
    """Which rows of the source were encoded."""

    def where(self, group: int) -> Where | None:
        """Where the row of a group stands; None if its file is no longer what it was."""
        try:
            return self.source[int(self.rows[self.groups.rows[group]])].where
        except (LuthierError, OSError, IndexError):  # moved or written anew while the model was trained
            return None


def _encode(
    text: str,
    use: Use,
    config: DataConfig,
    encoding: Encoding,
    seed: int,
    progress: Callable[[int], None],
    reports: list[SetReport],
) -> Encoded:
    spec = parse_spec(text, config.hub)
    if config.streaming and use == "train":
        if spec.take is not None:
            raise ConfigError("#N draws rows from anywhere, streaming reads in order", where=text)
        rows: Rows = Beginning(text, tuple(islice(stream_rows(spec, config), SAMPLED_ROWS)))
    else:
        rows = open_rows(spec, config)
    # A set that repeats is encoded once; its groups are then used several times.
    chosen, places = np.unique(take_indices(len(rows), spec.take, seed), return_inverse=True)
    encoded = encode_rows(
        rows, chosen, encoding, cache_root(config), workers=config.tokenize_workers, progress=progress
    )
    order = _groups_of(encoded.rows, places)
    repeated = max(0, (spec.take or 0) - len(rows)) if len(rows) else 0
    facts = encoded.facts
    reports.append(set_report(text, use, facts, len(order), encoded.lengths, encoded.rows, encoded.names, repeated))
    return Encoded(encoded, order, rows, chosen)


def _groups_of(rows: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The groups of each wanted row, in order; `rows` says, ascending, which row a group came from."""
    first, last = np.searchsorted(rows, places), np.searchsorted(rows, places, side="right")
    counts = last - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first, counts) + within


@dataclass(frozen=True)
class Beginning:
    """The first rows of a stream, as a set."""

    name: str
    rows: tuple[Row, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the rows."""
        return hashlib.blake2b(repr(self.rows).encode(errors="replace"), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def _picks(parts: Sequence[Encoded]) -> NDArray[np.int64]:
    """Every used group of every set: int64 [N, 2] of (set, group)."""
    pairs = [np.stack([np.full(len(part.order), number), part.order], axis=1) for number, part in enumerate(parts)]
    return np.concatenate([np.empty((0, 2), np.int64), *pairs]).astype(np.int64)


def _measures(parts: Sequence[Encoded], picks: NDArray[np.int64]) -> NDArray[np.float32]:
    """Weight and difficulty of each picked group's row, float32 [N, 2]."""
    found = np.zeros((len(picks), 2), dtype=np.float32)
    for number, part in enumerate(parts):
        mine = picks[:, 0] == number
        found[mine] = part.groups.measures[picks[mine, 1]]
    return found


def _names(parts: Sequence[Encoded], picks: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Identity and normalised key of each picked group's row, uint8 [N, 32]."""
    found = np.zeros((len(picks), 32), dtype=np.uint8)
    for number, part in enumerate(parts):
        mine = picks[:, 0] == number
        found[mine] = part.groups.names[picks[mine, 1]]
    return found


def _hold_out(
    parts: Sequence[Encoded], picks: NDArray[np.int64], ratio: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train, validation).  Rows that say the same, and the pieces of one row, stay on one side."""
    if ratio == 0.0:
        return picks, picks[:0]
    keys = np.ascontiguousarray(_names(parts, picks)[:, :16])
    distinct, which = np.unique(keys, axis=0, return_inverse=True)
    _, held = split_indices(len(distinct), ratio, seed)
    out = np.isin(which.reshape(-1), held)
    return picks[~out], picks[out]


def stream(config: DataConfig, encoding: Encoding, *, seed: int) -> Callable[[int], Iterator[Group]]:
    """An endless stream of training groups that can be opened at any position.

    Rows are read in order, set after set, pass after pass, and shuffled within blocks of `shuffle_buffer` rows; the
    order is a function of the seed alone.  Opening at position n reads and encodes the first n groups again.

    Raises (when read):
        DataError: a faulty row under `strict`, or a whole pass without a usable row.
    """

    def groups() -> Iterator[Group]:
        for epoch in count():
            facts = Facts()
            for block, rows in enumerate(_blocks(config)):
                order = np.random.default_rng([seed, epoch, block]).permutation(len(rows))
                for index in order.tolist() if config.shuffle else range(len(rows)):
                    yield from encoding.groups(rows[index], facts)[0]
                facts.rejected.clear()
            if facts.kept == 0:
                raise DataError("no row of the streamed sets can be used", code="no_rows")

    return lambda start: islice(groups(), start, None)


def _blocks(config: DataConfig) -> Iterator[list[Row]]:
    rows = chain.from_iterable(stream_rows(parse_spec(text, config.hub), config) for text in config.datasets)
    while block := list(islice(rows, config.shuffle_buffer)):
        yield block
