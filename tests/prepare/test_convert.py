"""Every shape that can hold a record gives it back unchanged; what a shape cannot hold is refused by name."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import task_for
from workshop import run, write_rows

from luthier.base.records import (
    Chat,
    Judged,
    Labelled,
    Message,
    Pair,
    Prompt,
    Record,
    Similar,
    Tagged,
    Text,
    Where,
)
from luthier.data.tasks import read_as
from luthier.prepare.shapes import SHAPES, TASKS, write
from luthier.prepare.shapes.parts import CannotHold
from luthier.prepare.verbs.convert import ConvertConfig

HERE = Where("f.jsonl", 1)
U, A, S = Message("user", "q"), Message("assistant", "a"), Message("system", "s")
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOLS = ({"type": "function", "function": {"name": "f", "parameters": {}}},)
WITH_TOOLS = (U, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "42", tool_call_id="c1"), A)

RECORDS: dict[str, Record] = {
    "round": Chat((U, A), HERE),
    "rounds": Chat((S, U, A, replace(U, content="q2"), replace(A, content="a2")), HERE),
    "weighted row": Chat((U, A), HERE, weight=2.0),
    "weighted turn": Chat((U, replace(A, weight=0.5)), HERE),
    "reasoning": Chat((U, replace(A, reasoning="hm")), HERE),
    "tools": Chat(WITH_TOOLS, HERE, TOOLS),
    "text": Text("words", HERE),
    "pair": Pair((U,), (A,), (replace(A, content="b"),), HERE),
    "long pair": Pair((S, U, A, U), (A,), (replace(A, content="b"), U, A), HERE),
    "scored pair": Pair((U,), (A,), (replace(A, content="b"),), HERE, margin=2.0),
    "judged": Judged((U, A), False, HERE),
    "judged rounds": Judged((S, U, A, U, A), True, HERE),
    "class": Labelled("words", "x", HERE),
    "classes": Labelled("words", ("x", "y"), HERE),
    "number": Labelled("words", 0.25, HERE),
    "labelled pair": Labelled("one", "yes", HERE, pair="two"),
    "labelled chat": Labelled("q\na", 3, HERE, messages=(U, A)),
    "tagged": Tagged(("a", "b"), ("O", "B-X"), HERE),
    "similar": Similar("q", ("a",), ("b", "c"), HERE),
    "scored similar": Similar("q", ("a",), ("b",), HERE, positive_scores=(0.9,), negative_scores=(0.2,)),
    "two texts": Similar("q", ("a",), (), HERE, 0.5),
    "prompt": Prompt((U,), HERE),
    "prompt with answer": Prompt((S, U), HERE, answer={"value": 42}),
    "tried prompt": Prompt((U,), HERE, action="go", reward=1.5),
}
HOLDS = {
    "round": {"messages", "sharegpt", "alpaca", "query-response", "prompt-completion"},
    "rounds": {"messages", "sharegpt", "alpaca", "query-response"},
    "weighted row": {"messages", "sharegpt", "alpaca", "query-response", "prompt-completion"},
    "weighted turn": {"messages", "sharegpt", "prompt-completion"},
    "reasoning": {"messages", "prompt-completion"},
    "tools": {"messages"},
    "text": {"text"},
    "pair": {"messages", "preference", "openai-preference"},
    "long pair": {"preference", "openai-preference"},
    "scored pair": {"preference"},
    "judged": {"messages", "sharegpt", "kto", "prompt-completion"},
    "judged rounds": {"messages", "sharegpt", "kto", "prompt-completion"},
    "class": {"classification"},
    "classes": {"classification"},
    "number": {"classification"},
    "labelled pair": {"classification"},
    "labelled chat": {"messages", "sharegpt", "classification"},
    "tagged": {"tagging"},
    "similar": {"retrieval"},
    "scored similar": {"retrieval"},
    "two texts": {"sentence-pair"},
    "prompt": {"prompt"},
    "prompt with answer": {"prompt"},
    "tried prompt": {"prompt"},
}
"""The shapes that hold all of a record and keep its kind."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RECORDS)
def test_what_is_written_without_loss_reads_back_as_it_was(name: str, shape: str) -> None:
    record, losses = RECORDS[name], []
    try:
        row = write(record, shape, losses)
    except CannotHold:
        row = None
    if row is None or losses:
        assert shape not in HOLDS[name], (row, losses)
        return
    back = read_as(json.loads(json.dumps(row)), HERE, None, TASKS.get(shape))
    if task_for(back) == task_for(record):
        assert back == record
        assert shape in HOLDS[name] or shape in _other_forms(name)
    elif isinstance(record, Pair):  # the answer that was not preferred is a text that is not like the question
        assert shape == "retrieval" and back == Similar("q", ("a",), ("b",), HERE)
    else:  # a chat as a prompt with its answer, and the other way round
        assert {task_for(back), task_for(record)} <= {"language", "prompt", "classification", "similarity"}


def _other_forms(name: str) -> set[str]:
    return {"messages"} if name == "prompt with answer" else set()


def test_the_settings_offer_every_shape() -> None:
    assert set(ConvertConfig.model_json_schema()["properties"]["to"]["enum"]) == set(SHAPES)


@pytest.mark.parametrize(
    ("name", "shape", "lost"),
    [
        ("weighted turn", "alpaca", ["weight of a turn"]),
        ("reasoning", "query-response", ["reasoning"]),
        ("judged", "alpaca", ["label"]),
        ("pair", "alpaca", ["rejected"]),
        ("scored pair", "openai-preference", ["margin"]),
        ("class", "text", ["label"]),
        ("tools", "sharegpt", ["tool call id", "tool call id"]),
        ("rounds", "prompt-completion", ["answers before the last one are trained"]),
    ],
)
def test_losses_have_names(name: str, shape: str, lost: list[str]) -> None:
    losses: list[str] = []
    write(RECORDS[name], shape, losses)
    assert losses == lost


@pytest.mark.parametrize(
    ("name", "shape"),
    [("text", "messages"), ("round", "text"), ("round", "preference"), ("tools", "alpaca"), ("class", "tagging")],
)
def test_impossible_conversions(name: str, shape: str) -> None:
    with pytest.raises(CannotHold):
        write(RECORDS[name], shape, [])


def test_rows_that_would_lose_something_are_left_out_and_named(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"id": 1, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"id": 2, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]},
        {"id": 3, "text": "plain"},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    done = run("convert", capsys, tmp_path / "out", file, flags=["--to", "alpaca"])
    assert done.rows == [{"instruction": "q", "input": "", "output": "a", "id": 1}]
    assert done.report["counts"] == {"would_lose": 1, "cannot_hold": 1}
    assert done.report["summary"] == {"refused": 2}
    lossy = run("convert", capsys, tmp_path / "lossy", file, flags=["--to", "alpaca", "--lossy", "--no_keep_columns"])
    assert lossy.rows == [{"instruction": "q", "input": "", "output": "a"}] * 2
    assert lossy.report["counts"] == {"lost: weight of a turn": 1, "cannot_hold": 1}
    strict = run("convert", capsys, tmp_path / "strict", file, flags=["--to", "alpaca", "--bad_rows", "strict"])
    assert (strict.code, strict.error["code"], strict.error["where"]) == (3, "would_lose", f"{file}:2")


def test_nothing_that_can_be_written_is_an_error(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "plain"}, {"text": "more"}])
    done = run("convert", capsys, tmp_path / "out", file, flags=["--to", "messages"])
    assert (done.code, done.error["code"], done.error["where"]) == (3, "cannot_hold", f"{file}:1")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("alpaca_en_demo.json", "messages"),
        ("alpaca_zh_demo.json", "sharegpt"),
        ("glaive_toolcall_en_demo.json", "messages"),
        ("dpo_zh_demo.json", "preference"),
        ("dpo_en_demo.json", "openai-preference"),
        ("kto_en_demo.json", "prompt-completion"),
    ],
)
def test_real_files_convert_and_come_back(test_data: Path, name: str, to: str, tmp_path: Path, capsys: Any) -> None:
    source = test_data / "llamafactory-demo" / name
    there = run("convert", capsys, tmp_path / "there", source, flags=["--to", to])
    assert there.code == 0, there.said
    assert there.report["rows"]["written"] + sum(there.report["counts"].values()) == there.report["rows"]["used"]
    assert there.report["rows"]["written"] > 0.9 * there.report["rows"]["used"]
    back = run("convert", capsys, tmp_path / "back", tmp_path / "there" / "out.jsonl", flags=["--to", to])
    assert Counter(map(json.dumps, back.rows)) == Counter(map(json.dumps, there.rows))


def test_a_column_becomes_a_label(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    source = test_data / "banking77" / "test.csv"
    done = run("convert", capsys, tmp_path / "out", source, flags=["--to", "classification"])
    assert len(done.rows) == 3080
    assert done.rows[0] == {"text": "How do I locate my card?", "label": "card_arrival", "category": "card_arrival"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"query": "q", "response": "a"},
    ],
)
def test_a_question_with_its_answer_is_a_text_and_one_like_it_in_any_shape(
    row: Any, tmp_path: Path, capsys: Any
) -> None:
    file = write_rows(tmp_path / "in.jsonl", [row])
    found = run("convert", capsys, tmp_path / "r", file, flags=["--to", "retrieval"])
    assert found.rows == [{"query": "q", "pos": ["a"], "neg": []}]
    pair = run("convert", capsys, tmp_path / "s", file, flags=["--to", "sentence-pair"])
    assert pair.rows == [{"sentence1": "q", "sentence2": "a"}]


def test_a_preference_is_two_judged_answers_or_a_text_with_a_hard_negative(tmp_path: Path, capsys: Any) -> None:
    rows = [{"id": n, "prompt": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(3)]
    file = write_rows(tmp_path / "in.jsonl", rows)
    kto = run("convert", capsys, tmp_path / "kto", file, flags=["--to", "kto"])
    assert kto.report["rows"]["written"] == 6 and kto.report["summary"]["refused"] == 0
    assert [(row["id"], row["messages"][-1]["content"], row["label"]) for row in kto.rows[:3]] == [
        (0, "good", True),
        (0, "bad", False),
        (1, "good", True),
    ]
    found = run("convert", capsys, tmp_path / "retrieval", file, flags=["--to", "retrieval"])
    assert found.rows[2] == {"query": "q2", "pos": ["good"], "neg": ["bad"], "id": 2}


@pytest.mark.parametrize(
    ("row", "shape", "why"),
    [
        (
            {"text": "我在北京", "labels": ["O", "O", "B-LOC", "I-LOC"]},
            "classification",
            "a tagged sentence has no label",
        ),
        ({"text": "words", "label": "x"}, "tagging", "a labelled text has no tags"),
        ({"text": "words"}, "retrieval", "plain text has no similar texts"),
        (
            {"conversations": [{"from": speaker, "value": "x"} for speaker in ("human", "gpt", "human", "gpt")]},
            "retrieval",
            "a conversation of several turns is not a text and one like it",
        ),
    ],
)
def test_what_a_shape_cannot_hold_is_said_of_the_row_as_it_is(
    row: Any, shape: str, why: str, tmp_path: Path, capsys: Any
) -> None:
    done = run("convert", capsys, tmp_path / "out", write_rows(tmp_path / "in.jsonl", [row]), flags=["--to", shape])
    assert done.code == 3 and done.error["what"].endswith(why)


def test_why_rows_were_refused_is_told_with_the_first_of_each_kind(tmp_path: Path, capsys: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    good = {"query": "q", "response": "a"}
    told = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    file = write_rows(tmp_path / "rows.jsonl", [good, told, told])
    done = run("convert", capsys, tmp_path / "out", file, flags=["--to", "alpaca"])
    (table,) = [table for table in done.report["tables"] if table["title"] == "Refused"]
    assert sum(row["rows"] for row in table["rows"]) == 2 and table["rows"][0]["first"].endswith("rows.jsonl:2")
    assert table["rows"][0]["why"] and "--removed FILE.jsonl" in " ".join(done.report["notes"])
