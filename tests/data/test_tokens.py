from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from luthier.base.errors import DataError, RunError
from luthier.base.records import BadRow, Fault, Record, Text, Where
from luthier.data import tokenize, tokens
from luthier.data.batch import Group, Tokens
from luthier.data.checks import RecordOptions
from luthier.data.encode import Encoding
from luthier.data.row import Row
from luthier.data.tokenize import encode_rows
from luthier.data.tokens import Selected, TokenSet


@dataclass(frozen=True)
class Numbers:
    """Rows of text: "0", "1 1", "2 2 2" and so on; every tenth one is broken."""

    size: int
    name: str = "numbers"
    fingerprint: str = "numbers"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Row:
        where = Where("numbers.jsonl", index + 1)
        if index % 10 == 9:
            return Row(where, Fault("malformed_json", where, "broken"))
        return Row(where, {"text": " ".join([str(index)] * (index % 7 + 1)), "extra": "木"})


def words(record: Record) -> Group | None:
    """One token for each word."""
    assert isinstance(record, Text)
    ids = np.array([int(word) for word in record.text.split()] + [1], dtype=np.int32)
    weights = np.full(len(ids), 0.5, dtype=np.float32)
    weights[0] = 0
    return Group((Tokens(ids, weights),)) if record.text != "0" else None


ENCODING = Encoding(words, "words", RecordOptions(), 64, "truncate", frozenset([1]))


def encode(
    cache: Path,
    rows: Numbers,
    encoding: Encoding = ENCODING,
    workers: int | None = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> TokenSet:
    chosen = np.arange(len(rows), dtype=np.int64)
    return encode_rows(rows, chosen, encoding, cache, workers=workers, progress=progress)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "SHARD_ROWS", 16)


def counting(cache: Path) -> Encoding:
    """An encoding that leaves a mark for every row it is asked for, in any process."""
    log = cache.parent / "encoded"

    def marked(record: Record) -> Group | None:
        with log.open("a") as file:
            file.write(".")
        return words(record)

    return replace(ENCODING, encode=marked)


def test_groups_come_back_as_they_were_made(tmp_path: Path) -> None:
    found = encode(tmp_path / "c", Numbers(50))
    kept = [index for index in range(1, 50) if index % 10 != 9]
    assert len(found) == len(kept)
    assert found.rows.tolist() == kept
    assert found.lengths.tolist() == [index % 7 + 2 for index in kept]
    for position, index in enumerate(kept):
        (sequence,) = found[position].sequences
        assert sequence.ids.tolist() == [index] * (index % 7 + 1) + [1]
        assert sequence.weights.tolist() == [0.0] + [0.5] * (index % 7 + 1)


def test_facts_count_and_name_what_was_left_out(tmp_path: Path) -> None:
    facts = encode(tmp_path / "c", Numbers(50)).facts
    assert (facts.rows, facts.kept, facts.stopped) == (50, 44, 44)
    assert facts.dropped == {"nothing_to_train": 1, "malformed_json": 5}
    assert facts.ignored == ["extra"]
    assert facts.trained == sum(index % 7 + 1 for index in range(1, 50) if index % 10 != 9)
    first, *_ = facts.rejected
    assert (first["file"], first["line"], first["code"]) == ("numbers.jsonl", 1, "nothing_to_train")
    assert "木" in str(first["row"])


def test_a_second_run_does_no_work_and_a_longer_one_only_the_rest(tmp_path: Path) -> None:
    cache, log = tmp_path / "c", tmp_path / "encoded"
    first = encode(cache, Numbers(48), counting(cache))
    done = len(log.read_text())
    told: list[int] = []
    again = encode(cache, Numbers(48), counting(cache), progress=told.append)
    assert len(log.read_text()) == done and sum(told) == 48
    assert first.fingerprint == again.fingerprint
    encode(cache, Numbers(56), counting(cache))
    assert len(log.read_text()) == done + 7  # rows 48 to 55, one of them broken


def test_the_key_follows_rows_and_settings(tmp_path: Path) -> None:
    base = encode(tmp_path / "c", Numbers(20)).fingerprint
    others = [
        encode(tmp_path / "c", Numbers(20, fingerprint="other")),
        encode(tmp_path / "c", Numbers(20), replace(ENCODING, key="other")),
        encode(tmp_path / "c", Numbers(20), replace(ENCODING, max_length=5)),
        encode(tmp_path / "c", Numbers(20), replace(ENCODING, overlong="drop")),
        encode(tmp_path / "c", Numbers(20), replace(ENCODING, options=RecordOptions(columns={"text": "text"}))),
    ]
    assert len({base, *(found.fingerprint for found in others)}) == 6


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cache, log = tmp_path / "c", tmp_path / "encoded"
    counted = counting(cache)

    def stops(record: Record) -> Group | None:
        if isinstance(record, Text) and record.text.startswith("40"):
            raise KeyboardInterrupt
        return counted.encode(record)

    with pytest.raises(KeyboardInterrupt):
        encode(cache, Numbers(64), replace(counted, encode=stops))
    before = len(log.read_text())
    assert len(encode(cache, Numbers(64), counted)) == 57
    assert len(log.read_text()) - before == 29  # the third and fourth shards, without what is broken
    assert not list((cache / "tokens").glob(".writing-*"))


@pytest.mark.parametrize("name", ["ids.npy", "weights.npy", "facts.json", "members.npy"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, name: str) -> None:
    expected = [group.sequences[0].ids.tolist() for group in encode(tmp_path / "a", Numbers(20))]
    encode(tmp_path / "c", Numbers(20))
    for damaged in sorted((tmp_path / "c" / "tokens").glob(f"*/{name}")):
        damaged.write_bytes(damaged.read_bytes()[:-3])
    tokens._map.cache_clear()
    found = encode(tmp_path / "c", Numbers(20))
    assert [group.sequences[0].ids.tolist() for group in found] == expected


def test_processes_give_what_one_gives(tmp_path: Path) -> None:
    alone = encode(tmp_path / "a", Numbers(100))
    many = encode(tmp_path / "b", Numbers(100), workers=2)
    assert alone.fingerprint == many.fingerprint
    assert alone.lengths.tolist() == many.lengths.tolist()
    assert alone.names.tolist() == many.names.tolist()
    assert alone.facts == many.facts


def test_an_error_in_a_process_arrives_whole(tmp_path: Path) -> None:
    strict = replace(ENCODING, options=RecordOptions(bad_rows="strict"))
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"numbers.jsonl:10: broken") as found:
            encode(tmp_path / "c", Numbers(100), strict, workers=workers)
        assert (found.value.code, found.value.exit_code) == ("malformed_json", 3)


def test_a_process_that_dies_is_one_clear_error(tmp_path: Path) -> None:
    def dies(record: Record) -> Group | None:
        os._exit(9)

    with pytest.raises(DataError, match="process died") as found:
        encode(tmp_path / "c", Numbers(100), replace(ENCODING, encode=dies), workers=2)
    assert found.value.code == "worker_died"


def test_a_row_that_the_template_refuses_is_left_out(tmp_path: Path) -> None:
    def refuses(record: Record) -> Group | None:
        raise BadRow(Fault("template_error", record.where, "no system message"))

    facts = encode(tmp_path / "c", Numbers(5), replace(ENCODING, encode=refuses)).facts
    assert facts.dropped == {"template_error": 5}
    assert facts.rejected[0]["message"] == "no system message"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as found:
        encode(tmp_path / "file", Numbers(5))
    assert "cache_dir" in str(found.value)


def test_many_shards_hold_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "SHARD_ROWS", 1)
    found = encode(tmp_path / "c", Numbers(400))
    tokens._map.cache_clear()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 300, limits[1]))
    try:
        assert sum(len(found[index]) for index in range(len(found))) == found.lengths.sum()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_selection_repeats_and_reorders(tmp_path: Path) -> None:
    one, two = encode(tmp_path / "c", Numbers(9)), encode(tmp_path / "c", Numbers(5, fingerprint="two"))
    picks = np.array([[1, 3], [0, 0], [1, 3]], dtype=np.int64)
    chosen = Selected([one, two], picks)
    assert [group.sequences[0].ids[0] for group in chosen] == [4, 1, 4]
    assert chosen.lengths.tolist() == [6, 3, 6]
    assert chosen.fingerprint != Selected([one, two], picks[:2]).fingerprint


def test_an_empty_set_is_a_set(tmp_path: Path) -> None:
    found = encode(tmp_path / "c", Numbers(0))
    assert len(found) == 0 and found.facts.rows == 0 and found.lengths.tolist() == []
    only_bad = encode(tmp_path / "c", Numbers(1))
    assert len(only_bad) == 0 and only_bad.facts.dropped == {"nothing_to_train": 1}
