"""Rows become records by policy; placeholders, system message, duplicate keys; real files end to end."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luthier.base.errors import DataError
from luthier.base.records import Chat, Fault, Message, Record, Text, Where
from luthier.data.checks import RecordOptions, identity_key, ignored_columns, normalised_key, to_record
from luthier.data.config import DataConfig
from luthier.data.sources import Row, open_rows, parse_spec

SHARED = Path(os.environ.get("LUTHIER_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
HERE = Where("f.jsonl", 3)
USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
TOOL = {"role": "tool", "content": "t"}
CALLING = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


def read(value: dict[str, Any], **options: Any) -> tuple[Record | Fault, tuple[Fault, ...]]:
    return to_record(Row(HERE, value), RecordOptions(**options))


def contents(value: dict[str, Any], **options: Any) -> list[str]:
    record, _ = read(value, **options)
    assert isinstance(record, Chat), record
    return [message.content for message in record.messages]


@pytest.mark.parametrize("policy", ["strict", "drop", "fix"])
@pytest.mark.parametrize(
    ("messages", "code", "path"),
    [
        ([], "empty_messages", ""),
        ([SYSTEM], "only_system", ""),
        ([SYSTEM, USER], "no_assistant", ""),
        ([USER, {"role": "assistant", "content": " \n"}], "empty_assistant", "messages[1]"),
        (
            [USER, {"role": "assistant", "content": [{"type": "reasoning", "text": "hm"}]}],
            "empty_assistant",
            "messages[1]",
        ),
        ([USER, TOOL, ASSISTANT], "tool_without_call", "messages[1]"),
        ([USER, CALLING, TOOL, USER, TOOL, ASSISTANT], "tool_without_call", "messages[4]"),
        ([USER, SYSTEM, ASSISTANT], "late_system", "messages[1]"),
    ],
)
def test_chats_that_make_no_sense(messages: list[Any], code: str, path: str, policy: str) -> None:
    fault, repairs = read({"messages": messages}, bad_rows=policy)
    assert isinstance(fault, Fault) and repairs == ()
    assert (fault.code, fault.path, fault.where) == (code, path, HERE)


def test_tools_may_answer_several_times_after_a_call() -> None:
    assert contents({"messages": [USER, CALLING, TOOL, TOOL, ASSISTANT]}, bad_rows="strict") == ["q", "", "t", "t", "a"]


@pytest.mark.parametrize(
    ("messages", "codes"),
    [
        ([USER, ASSISTANT, USER], ["ends_with_user"]),
        ([USER, ASSISTANT, USER, USER], ["ends_with_user", "ends_with_user"]),
        ([USER, ASSISTANT, {**USER, "mood": 1}], ["extra_key", "ends_with_user"]),
    ],
)
def test_turns_behind_the_last_answer(messages: list[Any], codes: list[str]) -> None:
    record, repairs = read({"messages": messages})
    assert isinstance(record, Chat) and [message.content for message in record.messages] == ["q", "a"]
    assert [fault.code for fault in repairs] == codes
    for policy in ("strict", "drop"):
        fault, repairs = read({"messages": messages}, bad_rows=policy)
        assert isinstance(fault, Fault) and fault.code == codes[0] and repairs == ()


def test_a_tool_answer_at_the_end() -> None:
    record, repairs = read({"messages": [USER, CALLING, TOOL]})
    assert isinstance(record, Chat) and len(record.messages) == 2
    assert [(fault.code, fault.path) for fault in repairs] == [("ends_with_tool", "messages[2]")]


def test_faults_and_repairs_of_reading_are_passed_on() -> None:
    fault = Fault("crlf", HERE, "x")
    assert to_record(Row(HERE, fault), RecordOptions()) == (fault, ())
    assert to_record(Row(HERE, {"text": "t"}, (fault,)), RecordOptions()) == (Text("t", HERE), (fault,))


def test_columns_are_renamed_before_the_shape_is_recognised() -> None:
    value = {"riddle": "q", "answer": "a", "response": "old", "id": 1}
    options = RecordOptions(columns={"riddle": "query", "answer": "response", "absent": "x"})
    record, _ = to_record(Row(HERE, value), options)
    assert isinstance(record, Chat) and [message.content for message in record.messages] == ["q", "a"]
    assert ignored_columns(Row(HERE, value), options) == ("id",)
    assert ignored_columns(Row(HERE, Fault("x", HERE, "")), options) == ()


def test_the_system_message_is_only_for_chats_without_one() -> None:
    assert contents({"messages": [USER, ASSISTANT]}, system="mine") == ["mine", "q", "a"]
    assert contents({"messages": [SYSTEM, USER, ASSISTANT]}, system="mine") == ["s", "q", "a"]
    assert read({"text": "t"}, system="mine")[0] == Text("t", HERE)


NAMES = {"self_name": ("小琴", "Viola"), "self_author": ("琴坊", "Luthier")}


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        ({"query": "hi", "response": "I am {{NAME}} by {{AUTHOR}}", "tag": "en"}, NAMES, "I am Viola by Luthier"),
        ({"query": "hi", "response": "I am {{NAME}}", "tag": "zh"}, NAMES, "I am 小琴"),
        ({"query": "你是谁", "response": "{{name}}，{{author}}开发"}, NAMES, "小琴，琴坊开发"),
        ({"query": "hi", "response": "{{name}}"}, NAMES, "Viola"),
        ({"query": "你是谁", "response": "{{NAME}}"}, {"self_name": ("A",)}, "A"),
        ({"query": "hi", "response": r"{{NAME}}"}, {"self_name": (r"\1",)}, r"\1"),
        ({"query": "hi", "response": "```\n{{name}}\n```"}, {}, "```\n{{name}}\n```"),
        ({"query": "hi", "response": "<p>{{name}}</p>"}, NAMES, "<p>{{name}}</p>"),
        ({"query": "hi", "response": "{{ value }}"}, {}, "{{ value }}"),
    ],
)  # fmt: skip
def test_placeholders(value: dict[str, Any], options: dict[str, Any], expected: str) -> None:
    assert contents(value, **options)[-1] == expected


@pytest.mark.parametrize(("text", "flag"), [("{{NAME}}", "--model_name"), ("{{author}}", "--model_author")])
def test_a_missing_name_is_an_error_that_names_the_flag(text: str, flag: str) -> None:
    with pytest.raises(DataError, match=rf"f\.jsonl:3.*{flag}") as caught:
        read({"query": "hi", "response": text})
    assert caught.value.code == "missing_name"


def test_options_come_from_the_config() -> None:
    config = DataConfig(columns={"a": "b"}, system="s", self_name=("n",), self_author=("x", "y"), bad_rows="drop")
    assert RecordOptions.from_config(config) == RecordOptions({"a": "b"}, "s", ("n",), ("x", "y"), "drop")


def test_keys_of_equal_records() -> None:
    one = Chat((Message("user", "Hello, World!"), Message("assistant", "a", weight=0)), HERE, weight=2)
    same = Chat((Message("user", "Hello, World!"), Message("assistant", "a")), Where("g", 1))
    near = Chat((Message("user", "ｈｅｌｌｏ  world。\n"), Message("assistant", "A")), HERE)
    assert identity_key(one) == identity_key(same) != identity_key(near)
    assert normalised_key(one) == normalised_key(near)


def test_keys_of_different_records() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    records: list[Record] = [
        Text("ab", HERE),
        Text("你好", HERE),
        Text("1+1", HERE),
        Text("11", HERE),
        Chat((Message("user", "ab"),), HERE),
        Chat((Message("assistant", "ab"),), HERE),
        Chat((Message("user", "a"), Message("user", "b")), HERE),
        Chat((Message("user", "ab", reasoning="x"),), HERE),
        Chat((Message("user", "ab", tool_calls=(call,)),), HERE),
        Chat((Message("user", "ab"),), HERE, tools=(call,)),
    ]
    assert len({identity_key(record) for record in records}) == len(records)
    assert len({normalised_key(record) for record in records}) == len(records)


def outcome(name: str, tmp_path: Path, **options: Any) -> Counter[str]:
    config = DataConfig(cache_dir=str(tmp_path), self_name=("小琴", "Viola"), self_author=("琴坊", "L"), **options)
    rows = open_rows(parse_spec(str(SHARED / name), "hf"), config)
    counts: Counter[str] = Counter()
    for index in range(len(rows)):
        record, _ = to_record(rows[index], RecordOptions.from_config(config))
        counts[record.code if isinstance(record, Fault) else type(record).__name__] += 1
        if isinstance(record, Chat):
            assert not any(
                "{{NAME}}" in message.content or "{{name}}" in message.content for message in record.messages
            )
    return counts


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llamafactory-demo/alpaca_en_demo.json", {"Chat": 999}),
        ("llamafactory-demo/alpaca_zh_demo.json", {"Chat": 1000}),
        ("llamafactory-demo/identity.json", {"Chat": 91}),
        ("llamafactory-demo/glaive_toolcall_en_demo.json", {"Chat": 300}),
        ("llamafactory-demo/glaive_toolcall_zh_demo.json", {"Chat": 298, "tool_without_call": 2}),
        ("llamafactory-demo/reason_tool_use_demo_50.jsonl", {"Chat": 50}),
        ("llamafactory-demo/v1_sft_demo.jsonl", {"Chat": 500}),
        ("llamafactory-demo/c4_demo.jsonl", {"Text": 300}),
        ("llamafactory-demo/wiki_demo.txt", {"Text": 30}),
        ("llamafactory-demo/mllm_demo.json", {"needs_media": 6}),
        ("llamafactory-demo/dpo_en_demo.json", {"wrong_task": 300}),
        ("llamafactory-demo/kto_en_demo.json", {"wrong_task": 300}),
        ("gsm8k/test.jsonl", {"Chat": 1319}),
        ("belle/data/1.5M/zh_seed_tasks.json", {"Chat": 175}),
        ("dolly-ir/dolly_instruction_response.jsonl", {"Chat": 4823}),
        ("self-instruct/data/seed_tasks.jsonl", {"Chat": 175}),
        ("kdconv/film/dev.json", {"Chat": 150}),
        ("mlx-wikisql/train.jsonl", {"Text": 1000}),
        ("bilingual-lm/zh_valid.jsonl", {"Text": 522}),
        ("data-juicer-demos/data/demo-dataset-chatml.jsonl", {"Chat": 4}),
        ("data-juicer-demos/data_visualization_diversity/data/demo-dataset.jsonl", {"Chat": 29}),
        ("data-juicer-demos/process_cft_zh_data/data/alpaca-cot.jsonl", {"Chat": 10, "empty_assistant": 1}),
        ("zh-medical-dialogue-gb", {"Chat": 7644}),
        ("polarity-jsonl/movie_reviews_test.jsonl", {"wrong_task": 200}),
    ],
)
def test_real_files(name: str, expected: dict[str, int], tmp_path: Path) -> None:
    assert outcome(name, tmp_path) == expected


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_real_files_with_columns(tmp_path: Path) -> None:
    assert outcome("belle/eval/eval_set.json", tmp_path, columns={"std_answer": "answer"}) == {
        "Chat": 631,
        "empty_assistant": 369,
    }
    renamed = {"riddle": "query", "answer": "response"}
    assert outcome("xiehouyu/xiehouyu.json", tmp_path, columns=renamed) == {"Chat": 14032}


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_reasoning_and_weights_of_real_rows(tmp_path: Path) -> None:
    config = DataConfig(cache_dir=str(tmp_path), self_name=("N",), self_author=("A",))
    options = RecordOptions.from_config(config)
    tools, _ = to_record(
        open_rows(parse_spec(str(SHARED / "llamafactory-demo/reason_tool_use_demo_50.jsonl"), "hf"), config)[0], options
    )
    assert isinstance(tools, Chat) and len(tools.tools) == 3
    assert (tools.messages[2].reasoning or "").startswith("Okay, the user") and tools.messages[2].content.startswith(
        "I'm sorry"
    )
    sft, _ = to_record(
        open_rows(parse_spec(str(SHARED / "llamafactory-demo/v1_sft_demo.jsonl"), "hf"), config)[0], options
    )
    assert isinstance(sft, Chat) and [message.weight for message in sft.messages] == [0, 1]
    assert sft.messages[1].content == "Hello! I am N, an AI assistant developed by A. How can I assist you today?"
