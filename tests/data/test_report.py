from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from luthier.base.errors import DataError
from luthier.data.config import DataConfig
from luthier.data.encode import Facts
from luthier.data.report import (
    DataReport,
    SetReport,
    notes,
    overlap,
    refuse,
    set_report,
    short_names,
    table,
    totals,
)


def keys(*texts: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Identity key from the text as it is, normalised key from the text in lower case."""
    rows = [text.ljust(16).encode() + text.lower().ljust(16).encode() for text in texts]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 32)


FACTS = Facts(
    rows=6,
    kept=4,
    dropped={"malformed_json": 2},
    repaired={"extra_key": 3},
    truncated=1,
    split=1,
    stopped=3,
    chats=4,
    trained=50,
    ignored=["id"],
)
SET = set_report(
    "a.jsonl",
    "train",
    FACTS,
    5,
    lengths=np.array([10, 20, 30, 40, 50]),
    rows=np.array([0, 1, 2, 2, 4]),
    names=keys("x", "X", "y", "y", "x"),
)
REPORT = DataReport(sets=[SET], overlap=0, max_length=50, totals={"train": totals([SET], "train")})
CONFIG = DataConfig()


def changed(**values: Any) -> DataReport:
    return replace(REPORT, sets=[replace(SET, **values)])


def refusal(report: DataReport, config: DataConfig = CONFIG) -> DataError:
    with pytest.raises(DataError) as found:
        refuse(report, config)
    return found.value


def test_the_pieces_of_one_row_are_no_duplicates() -> None:
    assert (SET.samples, SET.exact_duplicates, SET.near_duplicates) == (5, 1, 1)


def test_rows_that_come_again_are_told() -> None:
    assert not any("times" in line for line in notes(REPORT))
    assert "a.jsonl: there are 6 rows, so each comes 2 times" in notes(changed(repeated=6))
    assert "a.jsonl: there are 6 rows, so each comes 3 or 4 times" in notes(changed(repeated=13))


def test_numbers_of_a_set() -> None:
    assert (SET.rows, SET.kept, SET.tokens, SET.trained_tokens) == (6, 4, 150, 50)
    assert SET.lengths == [10, 30, 46, 49, 50]
    assert SET.stop_share == 0.75
    assert REPORT.totals["train"]["trained_share"] == 50 / 150


def test_overlap_counts_validation_samples() -> None:
    assert overlap(keys("a", "b"), keys("b", "B", "b", "c")) == 2
    assert overlap(keys("a"), keys()) == 0


def test_the_report_is_json() -> None:
    read = orjson.loads(orjson.dumps(REPORT.to_json()))
    assert read["sets"][0]["dropped"] == {"malformed_json": 2}
    assert read["totals"]["train"]["tokens"] == 150


def test_what_can_be_learned_from_passes() -> None:
    refuse(REPORT, CONFIG)


def test_nothing_kept_is_refused_with_the_reasons() -> None:
    error = refusal(changed(kept=0, dropped={"malformed_json": 2, "empty_messages": 4}))
    assert error.code == "no_rows" and error.exit_code == 3
    assert "empty_messages 4, malformed_json 2" in str(error)


def test_a_validation_set_without_a_usable_row_is_refused() -> None:
    (part,) = REPORT.sets
    held_out = replace(part, name="held.jsonl", use="validation", rows=6, kept=0, dropped={"wrong_task": 6})
    error = refusal(replace(REPORT, sets=[part, held_out]))
    assert error.code == "no_rows" and "held.jsonl: none of the 6 validation rows can be used: wrong_task 6" in str(
        error
    )


def test_thresholds_refuse() -> None:
    assert refusal(REPORT, DataConfig(min_rows=5)).code == "too_few_rows"
    assert refusal(REPORT, DataConfig(max_rejected=0.3)).code == "too_many_rejected"
    assert refusal(changed(trained_tokens=0)).code == "nothing_to_train"
    refuse(REPORT, DataConfig(min_rows=4, max_rejected=0.34))


def test_chats_that_never_train_a_stop_token_are_refused() -> None:
    assert refusal(changed(stop_share=0.0)).code == "no_stop_token"
    refuse(changed(stop_share=0.0, truncated=4), CONFIG)  # cut off by length, which the notes tell
    refuse(changed(stop_share=0.0, chats=0), CONFIG)  # plain text


def test_overlap_is_an_error_under_strict_only() -> None:
    seen = replace(REPORT, overlap=3)
    refuse(seen, CONFIG)
    assert refusal(seen, DataConfig(bad_rows="strict")).code == "overlap"


def test_the_terminal_sees_every_loss() -> None:
    said = "\n".join(notes(replace(REPORT, overlap=2, template_note="using ChatML", sampled=True)))
    for fact in (
        "using ChatML",
        "2 rows left out (malformed_json 2)",
        "extra_key 3",
        "1 rows cut at 50 tokens",
        "1 exact and 1 near duplicates",
        "columns without use: id",
        "2 validation samples",
        "streamed",
    ):
        assert fact in said
    assert table(REPORT)[0]["trained"] == "33%"


def test_an_empty_set_can_be_reported() -> None:
    empty = set_report("e", "train", Facts(rows=1), 0, np.empty(0, np.int64), np.empty(0, np.int64), keys())
    assert empty.lengths == [] and table(DataReport([empty], 0, 8))[0]["median / longest"] == "-"
    assert isinstance(empty, SetReport)


def test_sets_are_named_by_the_end_of_their_paths() -> None:
    names = ["/data/a/train.jsonl", "/data/b/train.jsonl#50", "/more/b/train.jsonl#50", "x.jsonl"]
    assert list(short_names(names).values()) == [
        "train.jsonl",
        "data/b/train.jsonl#50",
        "more/b/train.jsonl#50",
        "x.jsonl",
    ]
    assert list(short_names(["/a/x", "a/x", "/a/x"]).values()) == ["/a/x", "a/x"]


def test_the_first_rejected_row_is_told() -> None:
    row = {"file": "a.jsonl", "line": 3, "path": "messages[1]", "message": "the assistant says nothing"}
    with pytest.raises(DataError) as found:
        refuse(changed(kept=0, dropped={"empty_assistant": 6}), CONFIG, [row], "out/rejected.jsonl")
    assert "a.jsonl:3 messages[1]: the assistant says nothing" in str(found.value)
    assert "out/rejected.jsonl" in str(found.value)
