"""Repairs of texts, each on what it is for and on what it must leave alone."""

from __future__ import annotations

import pytest

from luthier.prepare import mend


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("cafÃ© au lait", "café au lait"),
        ("itâ€™s fine", "it’s fine"),
        ("ä½\xa0å¥½ï¼Œä¸–ç•Œ", "你好，世界"),
        ("ÄãºÃ£¬ÊÀ½ç", "你好，世界"),
        ("他说ÄãºÃÊÀ½ç了", "他说你好世界了"),
        ("浣犲ソ锛屼笘鐣岋紒", "你好，世界！"),
    ],
)
def test_text_decoded_wrongly_is_turned_back(broken: str, whole: str) -> None:
    assert mend.fix_encoding(broken) == whole


@pytest.mark.parametrize(
    "text",
    [
        "Müller, façade, Ærøskøbing, ÑANDÚ",
        "今天天气不错，我们去公园。涓涓细流",
        "Привет, как дела?",
        "これはテストです。",
        "“quoted” — naïve… 5 €",
        "联通",
        "emoji 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    ],
)
def test_sound_text_is_left_alone(text: str) -> None:
    everything = mend.repairs(
        encoding=True, unicode="nfc", controls=True, whitespace="trim", width="keep", chinese="keep"
    )
    for repair in everything:
        assert repair.apply(text) == text, repair.name


def test_a_quick_test_that_says_no_is_right() -> None:
    samples = [
        "a\x00b",
        "x \n",
        "\r\n",
        "a\u200bb",
        "é",
        "e\u0301",
        "ＡＢＣ",
        "漢語",
        "ÄãºÃÊÀ½ç",
        " a",
        "ok",
        "",
        "a\u3000",
    ]
    for settings in (
        {"unicode": "nfc", "whitespace": "trim", "width": "half", "chinese": "simplified"},
        {"unicode": "nfkc", "whitespace": "collapse", "width": "chinese", "chinese": "traditional"},
    ):
        for repair in mend.repairs(encoding=True, controls=True, **settings):  # type: ignore[arg-type]
            for text in samples:
                assert repair.needed(text) or repair.apply(text) == text, (repair.name, text)
                once = repair.apply(text)
                assert repair.apply(once) == once, (repair.name, text)


def test_control_characters() -> None:
    assert mend.strip_controls("\ufeffa\x00b\u200bc\x1b[31mred\x1b[0m\xad\u202e") == "abcred"
    assert mend.strip_controls("hid\U000e0041\U000e0042den") == "hidden"
    assert mend.strip_controls("tab\tline\nnext\u200dkept") == "tab\tline\nnext\u200dkept"


def test_white_space() -> None:
    assert mend.tidy_space("\n\n  code:\r\n    x = 1 \u3000\n\n\n\nend\xa0here \n") == "  code:\n    x = 1\n\nend here"
    assert mend.collapse_space("a  b\n   c\t\td \n") == "a b\nc d"


def test_width_and_chinese() -> None:
    assert mend.half_width("ＡＢＣ１２３，（好）\u3000ｶﾞ") == "ABC123，（好） ガ"
    assert mend.chinese_width("你好,世界!(真的)他有3.5元,又1,000人.") == "你好，世界！（真的）他有3.5元，又1,000人。"
    assert mend.chinese_width("see (a,b), ok?") == "see (a,b), ok?"
    assert mend.convert_chinese("漢語軟體", "simplified") == "汉语软体"
    assert mend.convert_chinese("鼠标里的软件", "taiwan") == "滑鼠裡的軟體"


def test_damage() -> None:
    assert mend.is_damaged("a\ufffdb") and mend.is_damaged("锟斤拷锟斤拷")
    assert not mend.is_damaged("plain") and not mend.is_damaged("锟铻")
