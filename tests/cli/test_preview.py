import json

import pytest

from luthier.cli.app import main

CHATS = [
    {"messages": [{"role": "user", "content": "你叫什么名字？"}, {"role": "assistant", "content": "我是小模型"}]},
    {"query": "hello", "response": "a small model"},
]


@pytest.fixture
def chats(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS) + "{broken\n", encoding="utf-8")
    return path


def trained(line):
    return "".join(piece["text"] for piece in line["pieces"] if piece["weight"])


def rows(capsys):
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line["type"] == "result"]


def test_the_trained_tokens_are_shown(chats, tiny_model_dir, capsys):
    assert main(["preview", str(chats), "--model", str(tiny_model_dir()), "--json"]) == 0
    assert [trained(row) for row in rows(capsys)] == ["我是小模型<|im_end|>", "a small model<|im_end|>"]


def test_pretraining_trains_all_but_the_first_token(chats, tiny_model_dir, capsys):
    words = ["--dataset", str(chats), "--model", str(tiny_model_dir()), "--stage", "pt", "--rows", "1", "--json"]
    assert main(["preview", *words]) == 0
    (row,) = rows(capsys)
    assert row["trained"] == row["tokens"] - 1


def test_rejected_rows_and_the_page(chats, tiny_model_dir, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["preview", str(chats), "--model", str(tiny_model_dir()), "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    assert "我是小模型" in out
    assert f"\n{chats}:3: " in err
    assert page.read_text(encoding="utf-8").count("<section>") == 2


def test_data_that_cannot_be_learned_from_ends_with_3(tiny_model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "assistant", "content": "", "weight": 0}]}\n')
    assert main(["preview", str(bad), "--model", str(tiny_model_dir())]) == 3
    assert "error: " in capsys.readouterr().err


def test_no_model_is_bad_usage(chats, capsys):
    assert main(["preview", str(chats)]) == 2
    assert "--model" in capsys.readouterr().err
