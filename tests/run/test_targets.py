"""What an encoder with a decoder writes for the rows of a file is what transformers writes for each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LINES
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from luthier.cli.app import main
from luthier.model.config import Shape
from luthier.model.scratch_encoders import t5_tokenizer, write_encoder

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
ASKED = [line[: 4 + 7 * number] for number, line in enumerate(LINES[:5])]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("seq2seq")
    words = LINES + [chr(97 + n % 26) * (n % 7 + 1) for n in range(200)]
    shape = Shape(architecture="t5", vocab_size=300, max_position_embeddings=128, initializer_range=0.2, **SIZE)
    write_encoder(folder / "t5", t5_tokenizer(words, 300), shape, seed=1)
    rows = [{"query": text, "response": text[::-1]} for text in LINES[:8]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "task_type": "seq2seq", "model": folder / "t5", "dataset": folder / "rows.jsonl", "train_type": "full",
        "val_dataset": folder / "rows.jsonl",
        "objective.prefix": "turn: ", "objective.max_new_tokens": 9, "max_steps": 3, "learning_rate": 0.01,
        "output_dir": folder / "out", "cache_dir": folder / "cache", "report_to": "none", "device": "cpu",
    }  # fmt: skip
    assert main(["train", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]) == 0
    return next((folder / "out").glob("v*"))


def theirs(run: Path, text: str, tokens: int) -> str:
    """What plain transformers writes."""
    checkpoint = run / "checkpoints" / (run / "checkpoints/BEST").read_text().strip()
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32)
    inputs = tokenizer("turn: " + text, return_tensors="pt")
    made = model.eval().generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(made[0], skip_special_tokens=True).strip()


def infer(run: Path, folder: Path, *more: str) -> list[dict[str, Any]]:
    result = folder / "result.jsonl"
    words = ["infer", "--model", str(run), "--val_dataset", str(folder / "asked.jsonl"), "--result_path", str(result)]
    assert main([*words, "--device", "cpu", *more]) == 0
    return [json.loads(line) for line in result.read_text(encoding="utf-8").splitlines()]


def test_rows_of_a_file_are_written_for_as_transformers_does(run: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"query": text} for text in ASKED]
    rows[1]["response"] = "what the data has"
    rows.insert(2, {"text": "asks nothing"})
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = infer(run, tmp_path)
    assert [line["index"] for line in lines] == list(range(6))
    assert "plain text, not a question" in lines.pop(2)["error"]
    assert [line["label"] for line in lines] == [None, "what the data has", None, None, None]
    assert [line["response"] for line in lines] == [theirs(run, text, 9) for text in ASKED]
    assert infer(run, tmp_path)[:2] == lines[:2], "a second run writes nothing again"
    (tmp_path / "result.jsonl").unlink()
    assert infer(run, tmp_path, "--max_new_tokens", "3")[0]["response"] == theirs(run, ASKED[0], 3)


def test_a_run_keeps_what_was_written_for_its_validation_rows(run: Path) -> None:
    kept = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in kept] == list(range(1, len(LINES) + 1))
    assert [row["response"] for row in kept] == [theirs(run, text, 9) for text in LINES]
    assert all(row["text"].startswith("turn: ") for row in kept)
    assert len({row["reference"] for row in kept}) == len(LINES)
    assert "each row's prediction is in predictions.jsonl" in (run / "report.md").read_text()


def test_what_is_written_is_judged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"query": text, "response": theirs(run, text, 9) or "?"} for text in ASKED]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "--model", str(run), "--eval_dataset", str(tmp_path / "qa.jsonl"), "--device", "cpu"]
    assert main([*words, "--eval_output_dir", str(tmp_path / "out")]) == 0
    report = json.loads(next((tmp_path / "out").rglob("report.json")).read_text())
    scores = {row["metric"]: row["score"] for row in report["scores"]}
    assert scores["exact_match"] == 1.0
    assert main([*words[:3], "--eval_dataset", "mmlu", "--eval_output_dir", str(tmp_path / "out2")]) == 2
    assert "reads sources and writes targets" in capsys.readouterr().err


def test_talking_and_serving_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "--model", str(run)]) == 2
    assert "reads sources and writes targets and does not talk" in capsys.readouterr().err
    assert main(["deploy", "--model", str(run), "--port", "0"]) == 2
    assert "there is no route" in capsys.readouterr().err
