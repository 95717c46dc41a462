"""The recipe of the nano model: its settings are runs; its data is clean, licensed, and apart from what is held out."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from luthier.base.config import read_yaml, validate
from luthier.run.config import RunConfig
from luthier.run.resolve import resolve

RECIPE = Path(__file__).parents[2] / "recipes" / "nano"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nano_{name}", RECIPE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data() -> ModuleType:
    return script("data")


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["pretrain", "chat"])
def test_the_settings_are_a_run(name: str):
    config = validate(RunConfig, read_yaml(RECIPE / f"{name}.yaml"))
    if not config.model.path:
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": "pretrained"})})
    resolved = resolve(config)
    assert resolved.method.type == "full" and resolved.data.packing
    assert resolved.data.validation and resolved.eval.every, "the best checkpoint is found by held-out loss"


def test_text_is_made_again_out_of_tokens(data: ModuleType):
    text = ' = A <unk> Ship = \n \n The so @-@ called " big " ship ( 1 @,@ 000 tons ) didn \'t sink . It <unk> . '
    text += "He left .\n"
    assert data.clean_wikitext(text) == 'The so-called "big" ship (1,000 tons) didn\'t sink. He left.'


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Look:\n\n```python\nx = 1\n```\n\nDone.", "Look:\n\nDone."),
        ("x = 1\n```\nAfter the block.", "After the block."),
        (
            "> 例如：\n>\n> ```sql\n> SELECT 1;\n> ```\n>\n> 输出 ```ok``` 即可。",
            "> 例如：\n>\n>\n> 输出 ```ok``` 即可。",
        ),
        ("| a | b |\n见[文档](/doc.md)。\n$$x\n= 1$$\n:numref:`fig`好", "见文档。\n\n好"),
    ],
)
def test_manuals_lose_their_code(data: ModuleType, text: str, kept: str):
    assert data.clean_manual(text) == kept


def test_the_table_of_the_card():
    finish = script("finish")
    stage = {
        "held_en.jsonl": {"bits_per_byte": 1.5, "bytes": 1000},
        "held_en.jsonl:books": {"bits_per_byte": 1.0, "bytes": 9},
    }
    lines = finish.table({"untrained": stage, "as shipped": stage}).splitlines()
    assert lines[0] == "| text | bytes | untrained | as shipped |"
    assert lines[2:] == ["| held_en | 1,000 | 1.500 | 1.500 |"]


def test_the_data_as_it_is_made(data: ModuleType, test_data: Path, tmp_path: Path):
    data.main(["--source", str(test_data), "--output", str(tmp_path)])
    text, chat = rows(tmp_path / "text.jsonl"), rows(tmp_path / "chat.jsonl")
    held = {language: rows(tmp_path / f"held_{language}.jsonl") for language in ("en", "zh")}
    assert 20e6 < sum(len(row["text"].encode()) for row in text) < 30e6
    assert len(chat) > 9000 and min(map(len, held.values())) >= 45

    assert not any(row["source"].startswith("NiuTrans") for row in (*text, *held["en"], *held["zh"]))
    assert not any("<unk>" in row["text"] or re.search(r"^[> ]*```\w*$", row["text"], re.MULTILINE) for row in text)
    trained = {row["text"] for row in text}
    assert not [row for part in held.values() for row in part if row["text"] in trained]
    said = {re.sub(r"\s", "", "".join(m["content"] for m in row["messages"])) for row in chat}  # type: ignore[index]
    heard = [re.sub(r"\s", "", row["text"]) for row in held["zh"] if row["source"].startswith("KdConv")]
    assert heard and not said.intersection(heard)
    sources = json.loads((tmp_path / "sources.json").read_text(encoding="utf-8"))
    assert all(source["licence"] and source["rows"] > 0 for source in sources)
    assert {source["use"] for source in sources} == {"pretraining", "chat"}


def test_the_card_is_made_of_what_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    texts = tmp_path / "held_en.jsonl"
    lines = [{"text": "He went down to the sea again.", "source": "a"}, {"text": "那天晚上，他走了。", "source": "b"}]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "numbers.json"
    words = ["--model", "nano", str(texts), "--device", "cpu", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
    script("evaluate").main()
    numbers = json.loads(out.read_text(encoding="utf-8"))
    size = {name: sum(len(line["text"].encode()) for line in lines if line["source"] in name) for name in ("a", "b")}
    one, two = numbers["held_en.jsonl:a"], numbers["held_en.jsonl:b"]
    assert (one["bytes"], two["bytes"]) == (size["a"], size["b"]) and 0.5 < one["bits_per_byte"] < 4
    bits = one["bits_per_byte"] * one["bytes"] + two["bits_per_byte"] * two["bytes"]
    assert numbers["held_en.jsonl"]["bits_per_byte"] == pytest.approx(bits / (one["bytes"] + two["bytes"]))
    assert f"{one['bits_per_byte']:.4f} bits per byte" in capsys.readouterr().out
    assert "| held_en | 57 |" in script("finish").table({"as shipped": numbers})
