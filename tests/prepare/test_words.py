"""Words and sentences of Chinese and English; what is cut joins to what it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.prepare import words
from luthier.prepare.scripts import is_chinese

MIXED = "I don't like 这个很好的产品，v2.0 at https://a.b/c?d=1! `x = 1` {{NAME}} <image> e-mail a@b.cn\n第二行 3月"


def test_counting_takes_characters_of_chinese_and_words_of_the_rest() -> None:
    assert words.counted("Hello 世界, don't well-known 3x") == ["hello", "世", "界", "don't", "well-known", "3x"]
    assert is_chinese("我喜欢 Python") and not is_chinese("I like Python 好")


def test_pieces_join_to_the_text_and_protect_what_must_stay() -> None:
    pytest.importorskip("jieba")
    pieces = words.cut(MIXED)
    assert "".join(piece.text for piece in pieces) == MIXED
    changeable = [piece.text for piece in pieces if piece.word]
    assert {"I", "don't", "like", "产品", "at"} <= set(changeable)
    protected = ("https", "image", "NAME", "x", "a@b.cn", "2", "v2")
    assert not any(part in changeable for part in protected)
    assert all(piece.chinese for piece in pieces if piece.text in ("产品", "这个"))


@given(st.text(max_size=200))
def test_nothing_is_lost(text: str) -> None:
    assert "".join(words.sentences(text)) == text
    plain = "".join(character for character in text if not "\u3400" <= character <= "\u9fff")
    assert "".join(piece.text for piece in words.cut(plain)) == plain


def test_sentences() -> None:
    text = "One. Two! 三。四？「五。」Dr J. Smith paid 3.5 dollars.\nLast"
    assert words.sentences(text) == [
        "One. ",
        "Two! ",
        "三。",
        "四？",
        "「五。」",
        "Dr J. Smith paid 3.5 dollars.\n",
        "Last",
    ]
