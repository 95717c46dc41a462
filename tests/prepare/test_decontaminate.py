"""Pieces of evaluation sets are found wherever they stand, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from workshop import run, write_rows

from luthier.prepare.ngrams import Grams, Index, index_grams
from luthier.prepare.shingles import Sizes

GRAMS = Grams(Sizes(4, 6), Sizes(3, 4))


def indexed(folder: Path, texts: list[str]) -> Index:
    return Index.write(folder, *index_grams(texts, GRAMS)[:2], GRAMS, index_grams(texts, GRAMS)[2])


def hits(index: Index, texts: list[str]) -> set[tuple[int, int]]:
    """(text, text of the index)"""
    rows, grams = index.find(texts)
    return set(zip(rows.tolist(), index.owners()[grams].tolist(), strict=True))


def test_n_grams_are_found_across_case_punctuation_and_width(tmp_path: Path) -> None:
    index = indexed(tmp_path, ["The quick brown fox jumps", "床前明月光，疑是地上霜", "too short", "three words here"])
    texts = [
        "and so THE quick, brown — fox ran",
        "the quick red fox jumps over",
        "他说：床前明月光疑是",
        "床前明月",
        "it has Three words here; indeed",
        "too short",
        "ｔｈｅ ｑｕｉｃｋ brown fox",
        "",
    ]
    assert hits(index, texts) == {(0, 0), (2, 1), (4, 3), (6, 0)}


def test_the_index_finds_what_plain_python_finds(tmp_path: Path) -> None:
    rng = random.Random(5)
    words = [f"w{number}" for number in range(7)]
    tests = [[rng.choice(words) for _ in range(rng.randint(2, 9))] for _ in range(25)]
    rows = [[rng.choice(words) for _ in range(rng.randint(0, 14))] for _ in range(300)]
    index = indexed(tmp_path, [" ".join(test) for test in tests])

    def grams(tokens: list[str], size: int) -> set[tuple[str, ...]]:
        return {tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)}

    wanted = {
        number
        for number, row in enumerate(rows)
        if any(len(test) >= 3 and grams(test, min(4, len(test))) & grams(row, min(4, len(test))) for test in tests)
    }
    assert 20 < len(wanted) < 280
    assert {row for row, _ in hits(index, [" ".join(row) for row in rows])} == wanted


def test_rows_with_a_piece_of_a_test_are_removed_and_named(tmp_path: Path, capsys: Any) -> None:
    question = "Natalia sold clips to 48 of her friends in April and then half as many clips in May"
    tests = write_rows(
        tmp_path / "test.jsonl",
        [
            {"question": "Unrelated question about the weather in Rome today ok", "answer": "1"},
            {"question": question, "answer": "72"},
        ],
    )
    rows = [
        {"text": "Nothing to see here."},
        {
            "messages": [
                {"role": "user", "content": f"Solve: {question.upper()}?"},
                {"role": "assistant", "content": "72"},
            ]
        },
        {"text": "Natalia sold clips to 48 of her friends in June."},
    ]
    file = write_rows(tmp_path / "train.jsonl", rows)
    done = run("decontaminate", capsys, tmp_path / "out", file, flags=["--against", str(tests)])
    assert done.code == 0, done.said
    assert done.rows == [rows[0], rows[2]]
    assert done.report["summary"] == {
        "contaminated": 1,
        "evaluation rows": 2,
        "evaluation rows found": 1,
        "n-grams looked for": len(question.split()) + 1 - 12 + 1,
    }
    (example,) = done.report["examples"]["contaminated"]
    assert (example["line"], example["holds"], example["ngrams"]) == (2, f"{tests}:2", 7)
    few = run("decontaminate", capsys, tmp_path / "few", file, flags=["--against", str(tests), "--min_matches", "8"])
    assert len(few.rows) == 3
    wide = run("decontaminate", capsys, tmp_path / "wide", file, flags=["--against", str(tests), "--words", "8"])
    assert [row.get("text") for row in wide.rows] == ["Nothing to see here."]
    strict = run("decontaminate", capsys, tmp_path / "s", file, flags=["--against", str(tests), "--bad_rows", "strict"])
    assert (strict.code, strict.error["code"], strict.error["where"]) == (3, "contaminated", f"{file}:2")


def test_boilerplate_can_be_ignored(tmp_path: Path, capsys: Any) -> None:
    boilerplate = "Please choose the one best answer from the options below and explain why you chose it"
    tests = write_rows(tmp_path / "test.jsonl", [{"text": boilerplate}])
    file = write_rows(tmp_path / "train.jsonl", [{"text": f"{number} {boilerplate}"} for number in range(8)])
    assert run("decontaminate", capsys, tmp_path / "a", file, flags=["--against", str(tests)]).code == 0
    flags = ["--against", str(tests), "--common", "7"]
    assert len(run("decontaminate", capsys, tmp_path / "b", file, flags=flags).rows) == 8


def test_something_to_look_for_is_needed(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "train.jsonl", [{"text": "a"}])
    assert run("decontaminate", capsys, tmp_path / "out", file, flags=[]).code == 2


def test_gsm8k_does_not_hold_its_own_test_set(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    lines = (test_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:1500]
    stolen = (test_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[10:20]
    rows = [json.loads(line) for line in [*lines[:700], *stolen, *lines[700:]]]
    file = write_rows(tmp_path / "train.jsonl", rows)
    flags = ["--against", str(test_data / "gsm8k" / "test.jsonl"), "--removed", str(tmp_path / "removed.jsonl")]
    done = run("decontaminate", capsys, tmp_path / "out", file, flags=flags)
    removed = [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {row["line"] for row in removed}
    assert found >= set(range(701, 711))
    assert len(found) < 40  # the two sets share some phrases of thirteen words
    assert done.report["summary"]["contaminated"] == len(found)
    assert np.all([row["ngrams"] > 5 for row in removed if 701 <= row["line"] <= 710])
