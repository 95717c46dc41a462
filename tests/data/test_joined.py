"""Joined samples, weights of rows and orders of an epoch in a run's own data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from luthier.base.errors import ConfigError
from luthier.data.batch import Group, Tokens
from luthier.data.joined import Joined, neighbours
from luthier.data.loader import Cursor, Shuffled


class Some:
    """Groups in memory."""

    fingerprint = "some"

    def __init__(self, groups: list[Group]):
        self.groups = groups
        self.lengths = np.array([len(group) for group in groups])

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]


def group(length: int, start: int = 0, weight: float = 1.0) -> Group:
    weights = np.full(length, weight, np.float32)
    weights[0] = 0
    return Group((Tokens(np.arange(start, start + length, dtype=np.int32), weights),))


def test_neighbours_fill_a_sequence_and_none_is_cut():
    assert neighbours([3, 3, 3, 9, 1, 1], 6) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert neighbours([], 6) == []
    joined = Joined(Some([group(3, 10), group(3, 20), group(9, 30)]), 6)
    assert len(joined) == 2 and joined.lengths.tolist() == [6, 9]
    assert joined[0].sequences[0].ids.tolist() == [10, 11, 12, 20, 21, 22]
    assert joined[0].sequences[0].weights.tolist() == [0, 1, 1, 0, 1, 1]
    with pytest.raises(ConfigError, match="only texts and chats"):
        Joined(Some([Group((*group(3).sequences, *group(3).sequences))]), 9)[0]


def test_a_drawn_sample_loses_the_weight_it_was_drawn_by():
    groups = Some([group(3, weight=0.5), group(3, weight=4.0)])
    source = Shuffled(
        groups, seed=0, per_step=2, order=lambda epoch: np.array([1, 1]), shares=np.array([0.5, 4.0], np.float32)
    )
    draw, read = next(source.draws(Cursor()))
    assert draw.samples == (1, 1)
    assert [one.sequences[0].weights.tolist() for one in read()] == [[0, 1, 1]] * 2


def test_rows_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from luthier.data.config import DataConfig
    from luthier.data.dataset import encoding_of, prepare

    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    rows = [{"text": "a", "weight": 2.0, "difficulty": 0.5}, {"text": "b"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(datasets=(str(tmp_path / "rows.jsonl"),), overlong="truncate")
    encoding = encoding_of(config, lambda record: group(4, weight=record.weight), "test", frozenset(), 64)
    prepared = prepare(config, encoding, template_note=None, seed=0, progress=lambda count: None)
    assert prepared.measures[:, 0].tolist() == [2.0, 1.0]
    assert prepared.measures[0, 1] == 0.5 and np.isnan(prepared.measures[1, 1])
