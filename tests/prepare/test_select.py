"""Selecting rows, by what the text shows and by what a model says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workshop import run, write_rows

from luthier import prepare
from luthier.prepare.models import asked


def _kept(done: Any) -> list[int]:
    assert done.code == 0, done.said
    return [row["n"] for row in done.rows]


def test_length_with_bounds_and_budget(tmp_path: Path, capsys: Any) -> None:
    texts = ["one", "one two", "一二三四五", "one two three", "", "x " * 50]
    file = write_rows(tmp_path / "f.jsonl", [{"n": n, "text": text} for n, text in enumerate(texts)])
    flags = ["--by", "length", "--minimum", "2", "--maximum", "10"]
    done = run("select", capsys, tmp_path / "a", file, flags=flags)
    assert _kept(done) == [1, 2, 3]
    assert done.report["counts"] == {"too_low": 1, "no_score": 1, "too_high": 1}
    longest = run("select", capsys, tmp_path / "b", file, flags=[*flags, "--top", "1", "--score_column", "words"])
    assert longest.rows == [{"n": 2, "text": "一二三四五", "words": 5}]
    short = run("select", capsys, tmp_path / "c", file, flags=["--keep", "lowest", "--share", "0.34"])
    assert _kept(short) == [0, 1]
    characters = run("select", capsys, tmp_path / "d", file, flags=["--length_in", "characters", "--maximum", "5"])
    assert _kept(characters) == [0, 2]


def test_confidence_and_hard_examples_per_class(tmp_path: Path, capsys: Any) -> None:
    rows = [{"n": n, "text": f"t{n}", "label": "ab"[n % 2], "meta": {"p": n / 10}} for n in range(10)]
    file = write_rows(tmp_path / "f.jsonl", [*rows, {"n": 99, "text": "no score", "label": "a"}])
    by = ["--column", "meta.p"]
    sure = run("select", capsys, tmp_path / "a", file, flags=[*by, "--by", "confidence", "--minimum", "0.7"])
    assert _kept(sure) == [7, 8, 9]
    hard = run("select", capsys, tmp_path / "b", file, flags=[*by, "--by", "hard", "--top", "2", "--per", "label"])
    assert _kept(hard) == [0, 1, 2, 3]
    flags = [*by, "--by", "hard", "--top", "2", "--trim", "0.2"]
    assert _kept(run("select", capsys, tmp_path / "c", file, flags=flags)) == [2, 3]


def test_difference_by_words(tmp_path: Path, capsys: Any) -> None:
    texts = ["the cat sat on the mat"] * 5 + ["股票今天大幅下跌"] * 4 + ["quantum physics is hard"]
    file = write_rows(tmp_path / "f.jsonl", [{"n": n, "text": text} for n, text in enumerate(texts)])
    assert _kept(run("select", capsys, tmp_path / "a", file, flags=["--by", "k_centre", "--top", "3"])) == [0, 5, 9]
    done = run("select", capsys, tmp_path / "b", file, flags=["--by", "semantic"])
    assert _kept(done) == [0, 5, 9] and done.report["counts"] == {"means_the_same": 7}


def test_what_is_asked_of_a_row() -> None:
    chat = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    messages = [{"role": role, "content": content} for role, content in chat]
    assert asked({"messages": messages}) == asked({"prompt": "s\nq1\na1\nq2", "completion": "a2"})
    assert asked({"text": "only text"}).prompt == ""
    assert asked({"prompt": "p", "chosen": "good", "rejected": "bad"}).answer == "good"


def test_instruction_following_difficulty(tmp_path: Path) -> None:
    losses = {"q": [1.0, 2.0, 3.0], "": [2.0, 2.0, 2.0]}

    def loss(prompts: Sequence[str], answers: Sequence[str]) -> Any:
        return np.array([losses[prompt[:1]][int(answer)] for prompt, answer in zip(prompts, answers, strict=True)])

    rows: list[Any] = [{"instruction": f"q{n}", "output": str(n)} for n in range(3)]
    file = write_rows(tmp_path / "f.jsonl", [*rows, {"text": "1"}])
    out = tmp_path / "out.jsonl"
    settings: Any = {"by": "ifd", "model": {"path": "any"}, "score_column": "ifd", "loss": loss}
    done = prepare.select(file, output=out, **settings)
    assert out.read_text().splitlines() == [
        '{"instruction":"q0","output":"0","ifd":0.5}',
        '{"instruction":"q1","output":"1","ifd":1.0}',
    ]
    assert done.report.summary == {"kept": 2, "no_score": 1, "too_high": 1}


def test_perplexity_under_the_bundled_model(tmp_path: Path, capsys: Any) -> None:
    texts = ["The city is the capital of the country.", "zxq vbn wqp kjh gfd plm", "这座城市是该国的首都。"]
    file = write_rows(tmp_path / "f.jsonl", [{"n": n, "text": text} for n, text in enumerate(texts)])
    flags = ["--by", "perplexity", "--model", "nano", "--device", "cpu", "--score_column", "perplexity"]
    done = run("select", capsys, tmp_path / "a", file, flags=flags)
    scores = {row["n"]: row["perplexity"] for row in done.rows}
    assert scores[0] < scores[1] / 10 and scores[2] < scores[1]
    assert _kept(run("select", capsys, tmp_path / "b", file, flags=[*flags, "--top", "2"])) == [0, 2]
    hidden = ["--by", "k_centre", "--embedding", "model", "--model", "nano", "--device", "cpu", "--top", "2"]
    assert len(_kept(run("select", capsys, tmp_path / "c", file, flags=hidden))) == 2


@pytest.mark.parametrize(
    ("flags", "code", "exit_code"),
    [
        (["--by", "ifd"], "bad_config", 2),
        (["--by", "k_centre"], "bad_config", 2),
        (["--top", "1", "--share", "0.5"], "bad_config", 2),
        (["--by", "confidence"], "no_score", 3),
    ],
)
def test_refusals(flags: list[str], code: str, exit_code: int, tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "f.jsonl", [{"text": "x"}])
    done = run("select", capsys, tmp_path / "out", file, flags=flags)
    assert (done.code, done.error["code"]) == (exit_code, code)
