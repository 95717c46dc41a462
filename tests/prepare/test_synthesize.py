"""New tasks from seeds: what is asked, what is kept, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from workshop import run, write_rows

from luthier import prepare
from luthier.prepare.instructing import Pool, Rules, Task, fault, rouge_l, task_of

SEEDS = [
    {"instruction": f"Name {what} and say why it matters.", "input": "", "output": f"The {what} matters."}
    for what in ("a river", "a metal", "a king", "an insect", "a planet")
]
ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}


def _answer(*tasks: tuple[str, str]) -> str:
    rows = [{"instruction": instruction, "input": "", "output": output} for instruction, output in tasks]
    return orjson.dumps({"tasks": rows}).decode()


def test_only_new_and_sound_tasks_are_kept(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(chats: Sequence[Sequence[Mapping[str, str]]], schema: Any) -> list[str]:
        asked.extend(chat[0]["content"] for chat in chats)
        number = len(asked)
        tasks = [
            (f"Translate sentence number {number} of chapter {number * 7} into verse {number * 13}", "Done."),
            ("Name a river and say why it matters.", "Again."),
            ("Draw a picture of a quiet harbour", "I cannot."),
            ("Go", "Too short."),
            ("Explain in full how bread rises overnight", ""),
        ]
        return [_answer(*tasks), *[""] * (len(chats) - 1)]

    file, out = write_rows(tmp_path / "s.jsonl", SEEDS), tmp_path / "o.jsonl"
    endpoint = {**ENDPOINT, "concurrency": 2}
    settings: Any = {"rows": 3, "max_requests": 8, "per_request": 1, "similarity": 0.9, "endpoint": endpoint}
    done = prepare.synthesize(file, output=out, ask=ask, shape="alpaca", topics=("law", "food"), **settings)
    rows = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert len(rows) == 3 and all(row["instruction"].startswith("Translate sentence") for row in rows)
    counts = dict(done.report.tally.counts)
    wanted = {"nothing_new", "needs_more_than_text", "instruction_too_short", "answer_too_short", "no_answer"}
    assert set(counts) == wanted and counts["nothing_new"] == counts["needs_more_than_text"] == 3
    assert "Topic: law." in asked[0] and "Topic: food." in asked[1]
    assert all(f'"instruction":"{seed["instruction"]}"' in "".join(asked) for seed in SEEDS)


def test_it_ends_when_nothing_new_comes(tmp_path: Path) -> None:
    def ask(chats: Sequence[Any], schema: Any) -> list[str]:
        return [_answer(("Tell me a short story about the sea", "Once upon a time.")) for _ in chats]

    file, out = write_rows(tmp_path / "s.jsonl", SEEDS), tmp_path / "o.jsonl"
    settings: Any = {"rows": 5, "max_requests": 6, "endpoint": ENDPOINT, "seeds": True}
    done = prepare.synthesize(file, output=out, ask=ask, **settings)
    rows = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert rows[:5] == SEEDS and len(rows) == 6 and rows[5]["messages"][1]["content"] == "Once upon a time."
    assert done.report.summary == {"seeds": 5, "requests": 6, "made": 1}
    assert "1 of 5 rows" in done.report.notes[0] and done.report.tally.counts["nothing_new"] == 5


def test_requests_can_be_written_instead_of_asked(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "s.jsonl", SEEDS)
    flags = ["--requests_only", "--rows", "12", "--per_request", "5", "--endpoint.model", "m"]
    done = run("synthesize", capsys, tmp_path / "out", file, flags=flags)
    assert [row["custom_id"] for row in done.rows] == ["request-0", "request-1", "request-2"]
    body = done.rows[0]["body"]
    assert body["model"] == "m" and "Write 5 new tasks" in body["messages"][0]["content"]


def test_refusals(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    file = write_rows(tmp_path / "s.jsonl", [{"text": "no task here"}])
    done = run("synthesize", capsys, tmp_path / "a", file, flags=[])
    assert done.code == 2 and "an endpoint is needed" in done.error["what"]
    done = run("synthesize", capsys, tmp_path / "b", file, flags=["--requests_only"])
    assert (done.code, done.error["code"]) == (3, "no_seeds")


def test_rouge_l_equals_the_definition() -> None:
    assert rouge_l(["the", "cat", "sat", "on", "mat"], ["the", "mat", "sat", "on", "cat"]) == pytest.approx(2 * 3 / 10)
    assert rouge_l(list("我爱北京天安门"), list("北京天安门")) == pytest.approx(2 * 5 / 12)
    assert rouge_l([], ["a"]) == 0 and rouge_l(["a"], ["a"]) == 1


def test_the_quick_bound_changes_nothing() -> None:
    texts = ["write a poem about the sea", "write a poem about a tree", "sort these numbers", "写一首关于春天的诗"]
    pool = Pool(0.6)
    for text in texts:
        pool.add(Task(text, "", "x"))
    for text in ["write a poem about the sky", "写一首关于秋天的诗", "numbers these sort", "entirely different words"]:
        from luthier.prepare.words import counted

        best = max(rouge_l(counted(text), counted(known)) for known in texts)
        assert pool.nearest(Task(text, "", "x")) == (best if best >= 0.6 else 0.0)


def test_faults() -> None:
    rules = Rules(3, 20, 1, 30)
    assert fault(Task("Say what rain is", "", "Water."), rules) is None
    assert fault(Task("请画一幅山水", "", "好的"), rules) == "needs_more_than_text"
    assert fault(Task("Repeat what I say now", "", "a b\n" * 12), rules) == "answer_repeats_itself"
    assert fault(Task("Copy this text for me", "text", "text"), rules) == "answer_repeats_the_task"
    assert fault(Task("word " * 30, "", "x"), rules) == "instruction_too_long"


def test_examples_from_chats() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert task_of({"messages": messages}) == Task("q", "", "a")
    assert task_of({"text": "t"}) is None
