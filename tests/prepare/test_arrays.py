"""Texts and numbers on their way to Arrow and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workshop import write_rows

from luthier.prepare.arrays import arrow_of, numpy_of

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


@settings(deadline=None)
@given(st.lists(_TEXTS))
def test_texts_are_what_pyarrow_makes_of_them(texts: list[str]) -> None:
    assert arrow_of(texts).equals(pa.array(texts, pa.large_string()))
    coded = [text.encode() for text in texts]
    if coded:
        assert arrow_of(coded).equals(pa.array(coded, pa.large_binary()))


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        arrow_of(["fine", "\ud800"])


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_numbers_come_back(values: list[bool], skipped: int) -> None:
    made = pa.array(values, pa.bool_())[skipped:]
    assert numpy_of(made).tolist() == values[skipped:] and numpy_of(made).dtype == bool
    numbers = pa.array([int(value) * 7 for value in values], pa.uint32())[skipped:]
    assert numpy_of(numbers).tolist() == numbers.to_pylist() and numpy_of(numbers).dtype == np.uint32
    big = np.arange(len(values), dtype=np.uint64) + np.uint64(2**63)
    assert np.array_equal(numpy_of(arrow_of(big)), big)


@pytest.mark.parametrize("words", [["clean"], ["dedup", "--exact"], ["dedup", "--near"]])
def test_pandas_is_not_imported(words: list[str], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "one row of seven words and no more"}])
    command = ["data", words[0], str(rows), *words[1:], "--output", str(tmp_path / "out.jsonl")]
    code = f"import sys; from luthier.cli.app import main; sys.exit(main({command!r}) or 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
