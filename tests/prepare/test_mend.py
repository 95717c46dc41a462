"""Repairs of texts, each on what it is for and on what it must leave alone."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.prepare import markup, mend, personal, signs


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
    for wanted in (
        {"unicode": "nfc", "whitespace": "trim", "width": "half", "chinese": "simplified"},
        {"unicode": "nfkc", "whitespace": "collapse", "width": "chinese", "chinese": "traditional"},
    ):
        for repair in mend.repairs(encoding=True, controls=True, **wanted):  # type: ignore[arg-type]
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


_SIGNED = [
    *mend.repairs(encoding=True, unicode="nfc", controls=True, whitespace="trim", width="half", chinese="simplified"),
    *mend.repairs(encoding=False, unicode="nfkc", controls=False, whitespace="keep", width="chinese", chinese="taiwan"),
    mend.Repair("html", markup.has_markup, markup.strip_markup, markup.MARKUP_SIGN),
    *(rule for rule in markup.LINE_RULES.values() if rule.sign),
]
_ODD = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),  # no row has these
    st.text(st.sampled_from("ab \t\n\r\x1b[\u3000\xa0\u2028\ufeff漢语锛éÃ©Ä㺶ï¼<>&;①Å\u0301\u1100\u1161゙〪"), max_size=12),
    st.lists(
        st.sampled_from(
            ["a", "\n", " ", "&amp;", "<p>", "[1]", "JavaScript", "Terms of Use", "e\u0301", "ÄãºÃÊÀ½ç", "。"]
        ),
        max_size=6,
    ).map("".join),
)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(_ODD, min_size=1, max_size=20))
def test_a_text_without_the_sign_is_not_changed(texts: list[str]) -> None:
    for repair in _SIGNED:
        assert repair.sign is not None
        for text, marked in zip(texts, signs.holding(texts, repair.sign).tolist(), strict=True):
            assert marked or repair.apply(text) == text, (repair.name, text)


def test_characters_that_no_normal_form_changes() -> None:
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    marked = signs.holding(characters, mend._UNSTABLE_SIGN)
    assert marked.sum() < 150_000
    for character in (c for c, odd in zip(characters, marked.tolist(), strict=True) if not odd):
        assert unicodedata.is_normalized("NFC", character) and unicodedata.combining(character) == 0
        # nothing before it joins with it
        assert all(len(unicodedata.normalize("NFC", before + character)) == 2 for before in "aeouAE가나ㅏกか\u1100ア")


def test_personal_data_is_where_its_sign_is() -> None:
    texts = [
        "13812345678", "call (010) 62345678!", "a@b.cn", "see https://x.org/a", "WWW.x.org", "11010519491231002X",
        "4111 1111 1111 1111", "8.8.4.100", "2001:4860:4860::8888", "hf_" + "a" * 34, "078-05-1120", "+44 20 7946 0958",
    ]  # fmt: skip
    for text in texts:
        for finding in personal.find(text):
            assert signs.holding([text], personal.SIGNS[finding.kind])[0], (finding, text)
    assert sum(bool(personal.find(text)) for text in texts) == len(texts)
