"""Every shape is recognised and read; every fault has its code and its path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.base.records import BadRow, Chat, Fault, Text, Where
from luthier.data.formats import extra_columns, read_record, shape_of

HERE = Where("f.jsonl", 12)
USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}


def chat(value: dict[str, Any], repairs: list[Fault] | None = None) -> Chat:
    record = read_record(value, HERE, repairs)
    assert isinstance(record, Chat)
    return record


def said(record: Chat) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]


ROUND = [("user", "q"), ("assistant", "a")]
ROUNDS = [("user", "q1"), ("assistant", "a1"), *ROUND]
WITH_SYSTEM = [("system", "s"), *ROUND]


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        ("messages", {"messages": [USER, ASSISTANT]}, ROUND),
        ("messages", {"messages": [USER, ASSISTANT], "system": "s"}, WITH_SYSTEM),
        ("messages", {"messages": [{"role": "developer", "content": "s"}, USER, ASSISTANT]}, WITH_SYSTEM),
        ("messages", {"messages": json.dumps([USER, ASSISTANT])}, ROUND),
        ("messages", {"messages": [{**USER, "name": None, "tool_calls": None}, ASSISTANT], "images": []}, ROUND),
        ("messages", {"conversations": [USER, ASSISTANT]}, ROUND),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ROUND),
        (
            "sharegpt",
            {"conversation": [{"from": "User", "value": "q"}, {"from": "bot", "value": "a"}], "system": "s"},
            WITH_SYSTEM,
        ),
        ("pairs", {"conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q", "assistant": "a"}]}, ROUNDS),
        ("pairs", {"conversation": [{"human": "q", "assistant": "a"}], "system": "s"}, WITH_SYSTEM),
        ("turns", {"messages": [{"message": "q", "attrs": []}, {"message": "a"}]}, ROUND),
        ("alpaca", {"instruction": "q", "input": "", "output": "a"}, ROUND),
        ("alpaca", {"instruction": "do", "input": "this", "output": "a"}, [("user", "do\nthis"), ("assistant", "a")]),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["q1", "a1"]], "text": "q a"}, ROUNDS),
        ("alpaca", {"text": "q", "input": "", "output": "a"}, ROUND),
        ("alpaca", {"input": "q", "output": "a"}, ROUND),
        ("instances", {"instruction": "q", "instances": [{"input": "", "output": "a"}]}, ROUND),
        ("query-response", {"query": "q", "response": "a"}, ROUND),
        ("query-response", {"query": "q", "response": "a", "history": [["q1", "a1"]]}, ROUNDS),
        ("query-response", {"query": "q", "response": "a", "history": '[["q1", "a1"]]', "system": ""}, ROUNDS),
        ("query-response", {"question": "q", "answer": "a"}, ROUND),
        (
            "query-response",
            {"instruction": "do", "context": "c", "response": "a"},
            [("user", "do\nc"), ("assistant", "a")],
        ),
        ("prompt-completion", {"prompt": "q", "completion": "a", "system": "s"}, WITH_SYSTEM),
        ("prompt-completion", {"prompt": [USER], "completion": [ASSISTANT]}, ROUND),
    ],
)
def test_chat_shapes(shape: str, value: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert shape_of(value) == shape
    record = chat(value)
    assert said(record) == expected
    assert record.weight == 1 and all(message.weight is None for message in record.messages)


@pytest.mark.parametrize("value", [{"text": "t"}, {"content": "t", "src": "x"}, {"text": "t", "meta": {}}])
def test_text_shapes(value: dict[str, Any]) -> None:
    assert shape_of(value) == "text"
    assert read_record(value, HERE) == Text("t", HERE)


def test_extra_columns_are_those_that_are_not_read() -> None:
    assert extra_columns({"text": "t", "meta": {}, "none": None}) == ("meta",)
    assert extra_columns({"instruction": "q", "input": "", "output": "a", "id": 3, "system": "s"}) == ("id",)
    assert extra_columns({"text": "q", "output": "a"}) == ()


def test_content_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}, "c", {"type": "output_text", "text": "d"}]
    thinking = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "a"}]
    record = chat({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": thinking}]})
    assert said(record) == [("user", "abcd"), ("assistant", "a")]
    assert record.messages[1].reasoning == "hm"


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
        {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "assistant", "content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]},
        {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "function_call", "value": '[{"name": "f", "arguments": "{\\"x\\": 1}"}]'},
    ],
)
def test_tool_calls_in_every_notation(turn: dict[str, Any]) -> None:
    message = chat({"messages": [USER, turn]}).messages[1]
    assert (message.role, message.content, message.tool_calls) == ("assistant", "", (CALL,))


def test_a_tool_call_keeps_its_id_and_answers_name_it() -> None:
    turns = [USER, {"role": "assistant", "tool_calls": [{**CALL, "id": "c1"}]}]
    turns += [{"role": "tool", "content": {"sun": 1}, "tool_call_id": "c1", "name": "f"}, ASSISTANT]
    record = chat({"messages": turns})
    assert record.messages[1].tool_calls == ({**CALL, "id": "c1"},)
    assert (record.messages[2].content, record.messages[2].tool_call_id, record.messages[2].name) == (
        '{"sun":1}',
        "c1",
        "f",
    )


def test_calls_join_the_turn_before_them() -> None:
    call = {"role": "function_call", "content": '{"name": "f", "arguments": {"x": 1}}'}
    record = chat({"messages": [USER, ASSISTANT, call, call, {"role": "observation", "content": "3"}, ASSISTANT]})
    assert said(record) == [*ROUND, ("tool", "3"), ("assistant", "a")]
    assert record.messages[1].tool_calls == (CALL, CALL)
    apart = chat({"messages": [USER, {**ASSISTANT, "weight": 0}, call]})
    assert [message.weight for message in apart.messages] == [None, 0, None]


@pytest.mark.parametrize(
    "tools",
    [
        [{"name": "f", "parameters": {}}],
        '[{"name": "f", "parameters": {}}]',
        {"name": "f", "parameters": {}},
        [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        ['{"name": "f", "parameters": {}}'],
    ],
)
def test_tools_in_every_notation(tools: Any) -> None:
    record = chat({"messages": [USER, ASSISTANT], "tools": tools})
    assert record.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


@pytest.mark.parametrize("tools", ["", "[]", [], None])
def test_no_tools(tools: Any) -> None:
    assert chat({"messages": [USER, ASSISTANT], "tools": tools}).tools == ()


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({"weight": 0}, 0),
        ({"weight": 1.0}, 1),
        ({"weight": "1"}, 1),
        ({"loss": False}, 0),
        ({"loss": True}, 1),
        ({"loss_scale": 0.5}, 0.5),
        ({"loss_weight": 2}, 2),
        ({"loss": False, "loss_scale": 3}, 0),
    ],
)
def test_weights_of_a_turn(keys: dict[str, Any], weight: float) -> None:
    assert chat({"messages": [USER, {**ASSISTANT, **keys}]}).messages[1].weight == weight


def test_weights_of_a_row_and_of_a_user_turn() -> None:
    assert chat({"messages": [USER, ASSISTANT], "weight": "0.25"}).weight == 0.25
    assert read_record({"text": "t", "weight": 2}, HERE) == Text("t", HERE, 2)
    assert chat({"messages": [{**USER, "loss": True}, ASSISTANT]}).messages[0].weight == 1


def test_only_the_completion_is_trained() -> None:
    value = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    assert [message.weight for message in chat(value).messages] == [None, 0, None, None]


@pytest.mark.parametrize(
    ("value", "code", "path"),
    [
        ({"messages": [USER, USER, USER, {"role": "asistant", "content": "a"}]}, "unknown_role", "messages[3].role"),
        ({"messages": [{"content": "a"}]}, "missing_key", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "missing_key", "messages[0]"),
        ({"messages": [{**USER, "mood": "x"}]}, "extra_key", "messages[0].mood"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "bad_weight", "messages[1].weight"),
        ({"messages": [USER, {**ASSISTANT, "loss_scale": -1}]}, "bad_weight", "messages[1].loss_scale"),
        ({"messages": [USER, {**ASSISTANT, "loss": "yes"}]}, "bad_weight", "messages[1].loss"),
        ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "weight_on_user", "messages[0].weight"),
        ({"messages": [{**USER, "content": 5}]}, "not_text", "messages[0].content"),
        ({"messages": [{**USER, "content": True}]}, "not_text", "messages[0].content"),
        ({"messages": [{**USER, "content": {"a": 1}}]}, "not_text", "messages[0].content"),
        ({"messages": ["hi"]}, "not_an_object", "messages[0]"),
        ({"messages": {"role": "user"}}, "not_a_list", "messages"),
        ({"messages": "[{]"}, "malformed_json", "messages"),
        ({"messages": [{**USER, "tool_calls": [CALL]}]}, "bad_tool_call", "messages[0]"),
        ({"messages": [{**ASSISTANT, "tool_calls": [{}]}]}, "bad_tool_call", "messages[0].tool_calls[0].name"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}]},
            "bad_tool_arguments",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            "bad_tool_arguments",
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"from": "function_call", "value": "f(x)"}]}, "bad_tool_arguments", "messages[0].value"),
        ({"messages": [{**USER, "content": [{"type": "image"}]}]}, "needs_media", "messages[0].content[0].type"),
        ({"messages": [USER, ASSISTANT], "images": ["a.png"]}, "needs_media", "images"),
        ({"messages": [USER, ASSISTANT], "tools": [{}]}, "bad_tool", "tools[0]"),
        ({"messages": [USER, ASSISTANT], "tools": "f()"}, "malformed_json", "tools"),
        ({"messages": [USER, ASSISTANT], "weight": "heavy"}, "bad_weight", "weight"),
        ({"query": "q", "response": "a", "history": ["q1"]}, "bad_history", "history[0]"),
        ({"instruction": "q", "output": 3}, "not_text", "output"),
        ({"instruction": "q", "output": ["a"]}, "not_text", "output"),
        ({"instruction": "q", "instances": []}, "many_instances", "instances"),
        ({"conversation": [{"human": "q"}]}, "missing_key", "conversation[0].assistant"),
        ({"text": " \n"}, "empty_text", "text"),
        ({"riddle": "q", "solution": "a"}, "unknown_shape", ""),
        ({"prompt": "q"}, "unknown_shape", ""),
        ({}, "unknown_shape", ""),
    ],
)  # fmt: skip
def test_faults_have_a_code_and_a_path(value: dict[str, Any], code: str, path: str) -> None:
    with pytest.raises(BadRow) as caught:
        read_record(value, HERE)
    assert (caught.value.fault.code, caught.value.fault.path, caught.value.fault.where) == (code, path, HERE)


def test_a_misspelt_role_gets_a_suggestion_and_unknown_columns_are_listed() -> None:
    with pytest.raises(
        BadRow, match=r"f\.jsonl:12 messages\[0\]\.role: unknown role 'asistant' \(did you mean 'assistant'"
    ):
        read_record({"messages": [{"role": "asistant", "content": ""}]}, HERE)
    with pytest.raises(BadRow, match=r"riddle, solution.*--columns"):
        read_record({"riddle": "q", "solution": "a"}, HERE)


@pytest.mark.parametrize(
    ("value", "code", "content"),
    [
        ({"messages": [{**USER, "mood": "x"}, ASSISTANT]}, "extra_key", "q"),
        ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "weight_on_user", "q"),
        ({"messages": [{**USER, "content": 42}, ASSISTANT]}, "not_text", "42"),
        ({"instruction": 1.5, "output": "a"}, "not_text", "1.5"),
    ],
)
def test_safe_repairs_are_made_and_noted(value: dict[str, Any], code: str, content: str) -> None:
    repairs: list[Fault] = []
    record = chat(value, repairs)
    assert [fault.code for fault in repairs] == [code]
    assert (record.messages[0].content, record.messages[0].weight) == (content, None)


@pytest.mark.parametrize(
    ("value", "task"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "dpo"),
        ({"messages": [USER, ASSISTANT], "rejected_response": "b"}, "dpo"),
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "dpo"),
        ({"messages": [USER, ASSISTANT], "label": True}, "kto"),
        ({"text": "t", "label": 1}, "classification"),
        ({"Input": "t", "Reward": "1"}, "PPO"),
        ({"query": "q", "pos": ["a"], "neg": ["b"]}, "embedding"),
        ({"tokens": ["a"], "ner_tags": [1]}, "tagging"),
        ({"question": "q", "A": "1", "B": "2", "answer": "A"}, "multiple-choice"),
    ],
)
def test_rows_of_other_tasks_are_refused_by_name(value: dict[str, Any], task: str) -> None:
    with pytest.raises(BadRow, match=task) as caught:
        read_record(value, HERE)
    assert caught.value.fault.code == "wrong_task"
    assert "luthier rlhf" not in caught.value.fault.message  # no command may be named that there is not
