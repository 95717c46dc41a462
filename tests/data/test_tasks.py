"""Every task is recognised from a row alone, and every fault of its shapes has a code and a path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import task_for

from luthier.base.records import (
    BadRow,
    Chat,
    Judged,
    Labelled,
    Message,
    Pair,
    Prompt,
    Similar,
    Tagged,
    Task,
    Where,
)
from luthier.data.checks import RecordOptions, shape_fault, to_record
from luthier.data.config import DataConfig
from luthier.data.row import Row
from luthier.data.sources import open_rows, parse_spec
from luthier.data.tasks import read_as, task_of

HERE = Where("f.jsonl", 12)
USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
PROMPT = (Message("user", "q"),)
CHOSEN, REJECTED = (Message("assistant", "good"),), (Message("assistant", "bad"),)


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [USER, GOOD], "rejected_response": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": BAD,
        },
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"input": {"messages": [USER]}, "preferred_completion": [GOOD], "non_preferred_completion": [BAD]},
        {"Prompt": "q", "Chosen": "good", "Rejected": "bad"},
        {"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": "bad"}
        | {"prompt": "q", "chosen": "good"},
    ],
)
def test_preferences(value: dict[str, Any]) -> None:
    assert task_of(value) == "preference"
    assert read_as(value, HERE) == Pair(PROMPT, CHOSEN, REJECTED, HERE)


def test_a_preference_keeps_system_history_and_margin() -> None:
    value = {"system": "s", "history": [["a", "b"]], "prompt": "q", "chosen": "good", "rejected": "bad"}
    record = read_as(value | {"chosen_score": 8, "rejected_score": "5.5"}, HERE)
    assert isinstance(record, Pair)
    assert [(m.role, m.content) for m in record.prompt] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "q"),
    ]
    assert record.margin == 2.5


@pytest.mark.parametrize(
    ("code", "path", "value"),
    [
        ("missing_key", "chosen", {"prompt": "q", "chosen": "good"}),
        ("identical_sides", "", {"prompt": "q", "chosen": "same", "rejected": "same"}),
        ("identical_sides", "", {"chosen": [USER, GOOD], "rejected": [USER, GOOD]}),
        ("empty_side", "rejected", {"prompt": "q", "chosen": "good", "rejected": " "}),
        ("prompt_mismatch", "rejected", {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "other"}, BAD]}),
        ("prompt_mismatch", "rejected", {"prompt": "q", "chosen": [GOOD], "rejected": [USER, BAD]}),
        ("missing_key", "prompt", {"chosen": "good", "rejected": "bad"}),
        (
            "tie",
            "chosen_score",
            {"prompt": "q", "chosen": "good", "rejected": "bad", "chosen_score": 1, "rejected_score": 1},
        ),
        ("no_assistant", "messages", {"messages": [USER], "rejected_response": "bad"}),
        (
            "unknown_role",
            "chosen[0].role",
            {"prompt": "q", "chosen": [{"role": "x", "content": "y"}], "rejected": "bad"},
        ),
        ("no_assistant", "messages", {"messages": [USER], "label": True}),
        ("bad_label", "labels", {"text": "t", "labels": [0.5]}),
        ("bad_label", "label", {"text": "t", "label": {}}),
        ("empty_text", "text", {"text": " ", "label": 1}),
        ("not_a_number", "Reward", {"Input": "t", "Reward": "much"}),
        ("tags_mismatch", "tags", {"tokens": ["a", "b"], "tags": ["O"]}),
        ("scores_mismatch", "pos_scores", {"query": "q", "pos": ["a", "b"], "neg": [], "pos_scores": [1]}),
        ("empty_text", "prompt", {"prompt": ""}),
    ],
)
def test_faults_have_codes_and_paths(code: str, path: str, value: dict[str, Any]) -> None:
    fault = shape_fault(value, HERE)
    if task_of(value) == "language":  # one side alone gives nothing away; asked for, it is a fault
        with pytest.raises(BadRow) as caught:
            read_as(value, HERE, None, "preference")
        fault = caught.value.fault
    assert fault is not None
    assert (fault.code, fault.path, fault.where) == (code, path, HERE)


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [USER, GOOD], "label": True},
        {"instruction": "q", "output": "good", "kto_tag": True},
        {"prompt": "q", "completion": "good", "label": True},
        {"prompt": [USER], "completion": [GOOD], "label": "true"},
    ],
)
def test_judgements(value: dict[str, Any]) -> None:
    assert task_of(value) == "kto"
    record = read_as(value, HERE, [])
    assert isinstance(record, Judged)
    assert record.good is True
    assert [(m.role, m.content) for m in record.messages] == [("user", "q"), ("assistant", "good")]


def test_a_judgement_must_be_true_or_false() -> None:
    for label in (1, 0.5, "good"):
        with pytest.raises(BadRow, match="label_not_boolean"):
            read_as({"messages": [USER, GOOD], "label": label}, HERE, None, "kto")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"text": "t", "label": "x"}, Labelled("t", "x", HERE)),
        ({"Input": "t", "Label": "3"}, Labelled("t", "3", HERE)),
        ({"text": "t", "label": 2}, Labelled("t", 2, HERE)),
        ({"text": "t", "labels": ["x", "y"]}, Labelled("t", ("x", "y"), HERE)),
        ({"text": "t", "label": [0, 3]}, Labelled("t", (0, 3), HERE)),
        ({"text": "t", "label": 0.25}, Labelled("t", 0.25, HERE)),
        ({"Input": "t", "Reward": "-1.5"}, Labelled("t", -1.5, HERE)),
        ({"messages": [USER], "label": 4}, Labelled("q", 4, HERE, messages=PROMPT)),
        ({"premise": "a", "hypothesis": "b", "label": "yes"}, Labelled("a", "yes", HERE, pair="b")),
    ],
)
def test_labels(value: dict[str, Any], expected: Labelled) -> None:
    assert task_of(value) == "classification"
    assert read_as(value, HERE) == expected


def test_other_columns_are_labels_when_asked_for() -> None:
    assert task_of({"text": "t", "category": "x"}) == "language"
    assert read_as({"text": "t", "category": "x"}, HERE, None, "classification") == Labelled("t", "x", HERE)


@pytest.mark.parametrize(
    ("value", "tokens", "tags"),
    [
        ({"tokens": ["a", "b"], "tags": ["O", "B-PER"]}, ("a", "b"), ("O", "B-PER")),
        ({"tokens": ["a", "b"], "ner_tags": [0, 3]}, ("a", "b"), ("0", "3")),
        (
            {"text": "吴重阳", "labels": ["B-NAME", "M-NAME", "E-NAME"]},
            ("吴", "重", "阳"),
            ("B-NAME", "M-NAME", "E-NAME"),
        ),
        ({"text": "in Rome", "label": ["O", "B-LOC"]}, ("in", "Rome"), ("O", "B-LOC")),
    ],
)
def test_tags(value: dict[str, Any], tokens: tuple[str, ...], tags: tuple[str, ...]) -> None:
    assert task_of(value) == "tagging"
    assert read_as(value, HERE) == Tagged(tokens, tags, HERE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"query": "q", "pos": ["a"], "neg": ["b", "c"]}, Similar("q", ("a",), ("b", "c"), HERE)),
        (
            {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [0.9], "neg_scores": [0.1]},
            Similar("q", ("a",), ("b",), HERE, positive_scores=(0.9,), negative_scores=(0.1,)),
        ),
        ({"anchor": "q", "positive": "a", "negative": "b"}, Similar("q", ("a",), ("b",), HERE)),
        ({"query": "q", "positive": ["a"]}, Similar("q", ("a",), (), HERE)),
        ({"question": "q", "Positives": ["a", "b"], "negatives": ["c"]}, Similar("q", ("a", "b"), ("c",), HERE)),
        ({"sentence1": "q", "sentence2": "a", "score": "0.5"}, Similar("q", ("a",), (), HERE, 0.5)),
        ({"sentence1": "q", "sentence2": "a", "label": 0.5}, Similar("q", ("a",), (), HERE, 0.5)),
        (
            {"messages": [USER, GOOD], "rejected_response": ["bad"], "label": 1.0},
            Similar("q", ("good",), ("bad",), HERE),
        ),
    ],
)
def test_similarity(value: dict[str, Any], expected: Similar) -> None:
    assert task_of(value) == "similarity"
    assert read_as(value, HERE) == expected


@pytest.mark.parametrize(
    ("value", "task", "expected"),
    [
        ({"prompt": "q"}, None, Prompt(PROMPT, HERE)),
        ({"prompt": "q", "answer": "42"}, None, Prompt(PROMPT, HERE, answer="42")),
        ({"prompt": [USER], "solution": {"x": 1}}, None, Prompt(PROMPT, HERE, answer={"x": 1})),
        ({"question": "q", "answer": "a"}, "prompt", Prompt(PROMPT, HERE, answer="a")),
        ({"messages": [USER, GOOD]}, "prompt", Prompt(PROMPT, HERE, answer="good")),
        (
            {"Input": "q", "Reward": "1", "Action": "go", "State": "s"},
            None,
            Prompt(PROMPT, HERE, action="go", reward=1.0),
        ),
    ],
)
def test_prompts(value: dict[str, Any], task: Task | None, expected: Prompt) -> None:
    assert read_as(value, HERE, None, task) == expected
    assert task_for(expected) == "prompt"


def test_training_reads_language_only() -> None:
    found, _ = to_record(Row(HERE, {"prompt": "q", "chosen": "a", "rejected": "b"}), RecordOptions())
    assert getattr(found, "code", None) == "wrong_task"
    found, _ = to_record(Row(HERE, {"prompt": "q", "chosen": "a", "rejected": "b"}), RecordOptions(task="preference"))
    assert isinstance(found, Pair)
    assert isinstance(to_record(Row(HERE, {"messages": [USER, GOOD]}), RecordOptions(task=None))[0], Chat)


@pytest.mark.parametrize(
    ("name", "task", "rows"),
    [
        ("llamafactory-demo/dpo_en_demo.json", "preference", 300),
        ("llamafactory-demo/dpo_zh_demo.json", "preference", 300),
        ("llamafactory-demo/v1_dpo_demo.jsonl", "preference", 10),
        ("llamafactory-demo/kto_en_demo.json", "kto", 300),
        ("polarity-jsonl/sentence_polarity_test.jsonl", "classification", 1066),
        ("flagembedding-examples/examples/finetune/embedder/example_data/retrieval/nli.jsonl", "similarity", 10),
        ("gsm8k/test.jsonl", "language", 1319),
        ("resume-ner-zh/dev.char.bmes", "tagging", 463),
        ("wnut17/emerging.test.annotated", "tagging", 1287),
        ("sms-spam/SMSSpamCollection", "classification", 5574),
        ("ner-en-juandr/wikigold/CONLL-format/data/wikigold.conll.txt", "tagging", 1696),
    ],
)
def test_real_files(test_data: Path, name: str, task: Task, rows: int, tmp_path: Path) -> None:
    found = open_rows(parse_spec(str(test_data / name), "hf"), DataConfig(cache_dir=str(tmp_path)))
    records = [to_record(found[number], RecordOptions(task=None))[0] for number in range(len(found))]
    good = [record for record in records if not hasattr(record, "code")]
    assert {task_for(record) for record in good} == {task}  # type: ignore[arg-type]
    assert len(good) == rows
