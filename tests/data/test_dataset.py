from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Chat, Record
from luthier.data.batch import Group
from luthier.data.config import DataConfig
from luthier.data.dataset import Encoded, Prepared, encoding_of, prepare, stream, together
from luthier.data.encode import Encoding
from luthier.data.render import Renderer
from luthier.data.tokens import Groups

from .templates import tokenizer

RENDERER = Renderer(tokenizer("chatml"))


def encode(record: Record) -> Group | None:
    tokens = RENDERER.chat(record, train_on="assistant") if isinstance(record, Chat) else RENDERER.text(record)
    return Group((tokens,)) if tokens.weights.any() else None


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., DataConfig]:
    """`settings({"a": rows}, split_ratio=...)` writes files and makes their config."""

    def make(sets: dict[str, list[Any]], **values: Any) -> DataConfig:
        for name, rows in sets.items():
            lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        names = values.pop("use", [str(tmp_path / f"{name}.jsonl") for name in sets])
        values = {"datasets": tuple(names), "overlong": "truncate", "cache_dir": str(tmp_path / "cache"), **values}
        return DataConfig(**values)

    return make


def encoding(config: DataConfig) -> Encoding:
    return encoding_of(config, encode, "test", RENDERER.stop_ids, config.max_length)


def prepared(config: DataConfig, seed: int = 0) -> Prepared:
    note = RENDERER.note
    return prepare(config, encoding(config), template_note=note, seed=seed, progress=lambda count: None)


def asked(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def questions(groups: Groups) -> list[str]:
    """What each sample's user says."""
    texts = [
        tokenizer("chatml").decode(group.sequences[0].ids) for group in map(groups.__getitem__, range(len(groups)))
    ]
    return [text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0] for text in texts]


MANY = {"a": [asked(f"a{n}") for n in range(20)], "b": [asked(f"b{n}") for n in range(5)]}


def test_sets_follow_each_other(settings: Callable[..., DataConfig]) -> None:
    found = prepared(settings(MANY))
    assert questions(found.train) == [f"a{n}" for n in range(20)] + [f"b{n}" for n in range(5)]
    assert found.validation is None and not found.rejected
    assert found.train.lengths.tolist() == [len(found.train[n]) for n in range(25)]
    assert found.report.sets[0].stop_share == 1.0


def test_a_number_behind_the_name_samples_or_repeats(settings: Callable[..., DataConfig], tmp_path: Path) -> None:
    few = prepared(settings(MANY, use=[f"{tmp_path}/a.jsonl#7"]))
    assert len(few.train) == 7 == len(set(questions(few.train)))
    many = prepared(settings(MANY, use=[f"{tmp_path}/b.jsonl#12"]))
    counts = sorted(questions(many.train).count(f"b{n}") for n in range(5))
    assert len(many.train) == 12 and counts == [2, 2, 2, 3, 3]
    assert (many.report.sets[0].rows, many.report.sets[0].repeated, few.report.sets[0].repeated) == (5, 7, 0)
    again = prepared(settings(MANY, use=[f"{tmp_path}/a.jsonl#7"]))
    other = prepared(settings(MANY, use=[f"{tmp_path}/a.jsonl#7"]), seed=1)
    assert questions(few.train) == questions(again.train) != questions(other.train)
    assert few.train.fingerprint == again.train.fingerprint != other.train.fingerprint


def test_the_row_of_a_validation_sample_is_found(settings: Callable[..., DataConfig], tmp_path: Path) -> None:
    config = settings(MANY, use=[f"{tmp_path}/a.jsonl#9", f"{tmp_path}/b.jsonl"], split_ratio=0.4)
    found = prepared(config)
    assert found.validation is not None
    for parts in (found, together([found, found])):
        groups = parts.validation
        assert groups is not None
        places = [parts.where(n) for n in range(len(groups))]
        told = [f"{Path(place.file).stem}{place.line - 1}" for place in places if place]
        assert told == questions(groups) and len(told) >= 5


def test_a_file_that_has_gone_while_the_model_was_trained_gives_no_place(tmp_path: Path) -> None:
    class Gone:
        def __getitem__(self, index: int) -> None:
            raise DataError("the file is gone", code="missing_file")

    rows: Any = SimpleNamespace(rows=np.array([0]))
    assert Encoded(rows, np.array([0]), cast(Any, Gone()), np.array([0])).where(0) is None


def test_rows_are_held_out_and_equal_ones_stay_together(settings: Callable[..., DataConfig]) -> None:
    rows = [asked(f"a{n % 10}") for n in range(40)]
    found = prepared(settings({"a": rows}, split_ratio=0.3))
    assert found.validation is not None
    train, held = questions(found.train), questions(found.validation)
    assert not set(train) & set(held) and len(train) == 28 and len(held) == 12
    assert found.report.overlap == 0


def test_overlap_with_a_validation_set_is_counted(settings: Callable[..., DataConfig], tmp_path: Path) -> None:
    sets = {"a": MANY["a"], "v": [asked("a3"), asked("new"), asked("a3")]}
    found = prepared(settings(sets, use=[f"{tmp_path}/a.jsonl"], validation=(f"{tmp_path}/v.jsonl",)))
    assert found.validation is not None and len(found.validation) == 3
    assert found.report.overlap == 2
    assert [part.use for part in found.report.sets] == ["train", "validation"]


def test_sets_are_interleaved_by_ratio(settings: Callable[..., DataConfig]) -> None:
    found = questions(prepared(settings(MANY, interleave=(0.5, 0.5))).train)
    mine = [[name for name in found if name.startswith(kind)] for kind in "ab"]
    assert mine[0] == [f"a{n}" for n in range(len(mine[0]))]  # each set in its own order
    assert len(mine[0]) == 20 or len(mine[1]) == 5
    repeated = questions(prepared(settings(MANY, interleave=(0.5, 0.5), interleave_stop="all_exhausted")).train)
    assert set(repeated) >= {*(f"a{n}" for n in range(20)), *(f"b{n}" for n in range(5))}


def test_faulty_rows_are_told_with_their_line(settings: Callable[..., DataConfig], tmp_path: Path) -> None:
    empty = {"messages": []}
    found = prepared(settings({"a": [asked("good"), "{broken", empty, asked("long", "word " * 99)]}, max_length=60))
    assert [(row["line"], row["code"]) for row in found.rejected] == [(2, "malformed_json"), (3, "empty_messages")]
    assert found.rejected[1]["file"] == str(tmp_path / "a.jsonl") and found.rejected[1]["row"] == '{"messages":[]}'
    assert found.report.sets[0].truncated == 1
    with pytest.raises(DataError, match=r"a.jsonl:2") as error:
        prepared(settings({"a": [asked("good"), "{broken"]}, bad_rows="strict"))
    assert error.value.code == "malformed_json"


def test_over_long_rows_follow_the_policy(settings: Callable[..., DataConfig]) -> None:
    rows = {"a": [asked("q", "word " * 50), asked("q" * 200, "no"), asked("short")]}
    cut = prepared(settings(rows, max_length=40))
    assert (cut.report.sets[0].truncated, cut.report.sets[0].dropped) == (1, {"no_target_left": 1})
    gone = prepared(settings(rows, max_length=40, overlong="drop"))
    assert gone.report.sets[0].dropped == {"too_long": 2} and questions(gone.train) == ["short"]
    pieces = prepared(settings(rows, max_length=40, overlong="split"))
    assert pieces.report.sets[0].split == 2 and len(pieces.train) > 4
    for number in range(len(pieces.train)):
        (tokens,) = pieces.train[number].sequences
        assert len(tokens) <= 40 and tokens.weights.any() and tokens.weights[0] == 0


def test_the_pieces_of_a_row_stay_on_one_side_of_the_split(settings: Callable[..., DataConfig]) -> None:
    rows = [{"text": f"{n} " * 60} for n in range(6)]
    found = prepared(settings({"a": rows}, overlong="split", max_length=40, split_ratio=0.5))
    assert found.validation is not None
    decode = tokenizer("chatml").decode
    numbers = [
        set("".join(decode(groups[n].sequences[0].ids, skip_special_tokens=True) for n in range(len(groups))))
        for groups in (found.train, found.validation)
    ]
    assert len(numbers[0]) == len(numbers[1]) == 4 and numbers[0] & numbers[1] == {" "}


def test_a_stream_goes_on_from_any_position(settings: Callable[..., DataConfig]) -> None:
    config = settings(MANY, streaming=True, shuffle_buffer=8)
    open_at = stream(config, encoding(config), seed=3)

    def read(start: int, count: int) -> list[list[int]]:
        return [group.sequences[0].ids.tolist() for group in itertools.islice(open_at(start), count)]

    whole = read(0, 60)
    assert len({str(ids) for ids in whole[:25]}) == 25  # one pass holds every row once
    assert sorted(map(str, whole[:25])) == sorted(map(str, whole[25:50])) and whole[:25] != whole[25:50]
    for start in (1, 24, 25, 37):
        assert read(start, 20) == whole[start : start + 20]
    assert [
        group.sequences[0].ids.tolist() for group in itertools.islice(stream(config, encoding(config), seed=4)(0), 25)
    ] != whole[:25]


def test_a_stream_without_usable_rows_ends_in_an_error(settings: Callable[..., DataConfig], tmp_path: Path) -> None:
    config = settings({"a": ["{", "{"]}, streaming=True)
    with pytest.raises(DataError) as error:
        next(stream(config, encoding(config), seed=0)(0))
    assert error.value.code == "no_rows"
    with pytest.raises(ConfigError):
        prepared(settings(MANY, use=[f"{tmp_path}/a.jsonl#3"], streaming=True))


def test_the_report_of_a_stream_is_of_its_beginning(settings: Callable[..., DataConfig]) -> None:
    found = prepared(settings(MANY, streaming=True))
    assert found.report.sampled and found.report.sets[0].rows == 20 and len(found.train) == 25


def test_a_real_set_is_prepared_whole(settings: Callable[..., DataConfig], test_data: Path) -> None:
    names = [f"{test_data}/llamafactory-demo/{name}" for name in ("alpaca_zh_demo.json#50", "alpaca_en_demo.json#50")]
    found = prepared(settings({}, use=names))
    assert len(found.train) == 100 and not found.rejected
    assert all(part.stop_share > 0.9 for part in found.report.sets)
    assert np.all(found.train.lengths <= 2048)
