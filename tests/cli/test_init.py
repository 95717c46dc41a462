"""`luthier init` as a user types it, and that what it makes can be pretrained and asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import app as cli

SMALL = ["--vocab_size", "310", "--hidden_size", "16", "--num_attention_heads", "2", "--num_key_value_heads", "1"]
SMALL += ["--num_hidden_layers", "1", "--intermediate_size", "32", "--max_position_embeddings", "64"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": f"Line {n}: the weather is fine, and we sing. 天气很好，我们唱歌。"} for n in range(30)]
    chat = {"messages": [{"role": "user", "content": "Sing!"}, {"role": "assistant", "content": "La la la."}]}
    lines = [json.dumps(row, ensure_ascii=False) for row in [*rows, chat, {"nothing": 1}]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_new_model_is_made_pretrained_and_asked(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    assert cli.main(["init", "--dataset", str(corpus), "--output_dir", str(base), *SMALL, "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not list(tmp_path.glob(".luthier-init-*"))
    result = next(line for line in said if line["type"] == "result")
    assert (result["path"], result["rows"]) == (str(base), 31)
    assert result["parameters"] == 310 * 16 + 2 * (16 * 16 + 16 * 8) + 16 + 2 * 8 + 3 * 16 * 32 + 3 * 16
    assert any(line["type"] == "warning" and "1 rows left out" in json.dumps(line) for line in said)

    words = ["pretrain", "--model", str(base), "--train_type", "full", "--dataset", f"{corpus}#31", "--max_steps", "2"]
    words += ["--gradient_accumulation_steps", "1", "--output_dir", str(tmp_path / "runs"), "--max_length", "64"]
    assert cli.main([*words, "--report_to", "none", "--bad_rows", "drop"]) == 0
    run = Path(capsys.readouterr().out.strip().splitlines()[-1])
    questions, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    questions.write_text('{"query": "Sing!"}\n', encoding="utf-8")
    words = ["infer", "--model", str(run), "--val_dataset", str(questions), "--result_path", str(answers)]
    assert cli.main([*words, "--max_new_tokens", "4"]) == 0
    assert len(answers.read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no text was named"),
        (["--dataset", "missing.jsonl"], 3, "missing.jsonl"),
        (["--dataset", "CORPUS", "--vocab_size", "100000"], 2, "--vocab_size"),
        (["--dataset", "CORPUS", "--hidden_size", "18"], 2, "even multiple"),
        (["--dataset", "CORPUS", "--output_dir", "."], 2, "not empty"),
        (["--dataset", "CORPUS", "--bad_rows", "strict"], 3, "corpus.jsonl:32"),
    ],
)
def test_what_cannot_be_made(
    tmp_path: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    said: str,
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", *(str(corpus) if word == "CORPUS" else word for word in words)]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "base").exists(), "nothing half-made is left"
