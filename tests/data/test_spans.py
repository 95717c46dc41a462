"""Tags told as places in a text: read, aligned with words, refused where they make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.base.records import BadRow, Tagged, Where
from luthier.data.spans import words_in
from luthier.data.tasks import read_as, task_of

HERE = Where("rows.jsonl", 1)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "Ada met Bob Ross.", "spans": [[0, 3, "PER"], [8, 16, "PER"]]},
        {"text": "Ada met Bob Ross.", "label": [[8, 16, "PER"], [0, 3, "PER"]]},
        {"text": "Ada met Bob Ross.", "entities": [{"start": 0, "end": 3, "label": "PER"},
                                                     {"start": 8, "end": 16, "type": "PER"}]},
    ],
)  # fmt: skip
def test_spans_become_a_tag_for_each_word(row: dict[str, Any]):
    assert task_of(row) == "tagging"
    record = read_as(row, HERE)
    assert isinstance(record, Tagged)
    assert record.tokens == ("Ada", "met", "Bob", "Ross", ".")
    assert record.tags == ("B-PER", "O", "B-PER", "I-PER", "O")
    assert [row["text"][start:end] for start, end in record.places] == list(record.tokens)


def test_chinese_is_tagged_by_character_and_words_are_cut_where_a_span_ends():
    record = read_as({"text": "王明在ABC公司2008年", "spans": [[0, 2, "人"], [3, 8, "司"], [8, 10, "年"]]}, HERE)
    assert isinstance(record, Tagged)
    assert record.tokens == ("王", "明", "在", "ABC", "公", "司", "20", "08", "年")
    assert record.tags == ("B-人", "I-人", "O", "B-司", "I-司", "I-司", "B-年", "O", "O")


def test_a_text_without_entities_is_all_outside():
    record = read_as({"text": "no one", "spans": []}, HERE, None, "tagging")
    assert isinstance(record, Tagged) and record.tags == ("O", "O")
    assert task_of({"text": "no one", "spans": []}) == "language"


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        ([[0, 99, "X"]], "outside the text"),
        ([[2, 2, "X"]], "empty"),
        ([[-1, 2, "X"]], "outside"),
        ([[0, 4, "X"], [2, 6, "Y"]], "overlap"),
        ([[0, 4]], "start, end, label"),
        ([[0, True, "X"]], "start, end, label"),
    ],
)
def test_spans_that_make_no_sense_are_refused_by_place(spans: list[Any], told: str):
    with pytest.raises(BadRow, match=told) as caught:
        read_as({"text": "some words", "spans": spans}, HERE, None, "tagging")
    assert caught.value.fault.code == "bad_span" and caught.value.fault.path.startswith("spans[")


def test_marks_stand_alone_and_spaces_are_no_words():
    assert [("a-b, c".__getitem__(slice(*place))) for place in words_in("a-b, c")] == ["a", "-", "b", ",", "c"]
