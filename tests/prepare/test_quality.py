"""Every published rule, on a page it refuses and on one it lets through."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from luthier.base.errors import ConfigError
from luthier.prepare import markup, quality, repetition
from luthier.prepare.quality import PAGE_RULES, REPETITION_RULES, RULES, SETS, Page, read_bad_words

PROSE = (
    "The river runs through the old town and past the mill, where people have met to talk since the bridge was built. "
    "In spring its water rises, and boats that were kept in sheds are carried down to be painted. Nobody can say who "
    "began the custom. It is said that a miller with seven daughters wanted them to see the world, so he built a boat."
)
CHINESE = (
    "河水穿过老城，从磨坊旁边流过，人们在桥建成以后就常常在这里见面聊天。春天水位上升，存放在棚子里的船被抬下来重新上漆。"
    "没有人知道这个习惯是谁开始的。有人说，从前有一位磨坊主想让他的七个女儿去看看外面的世界，于是造了一条船。"
)

REFUSED = {
    "c4_lorem_ipsum": PROSE + " Lorem ipsum dolor sit amet.",
    "c4_curly_bracket": PROSE + " function () { return 1 }",
    "c4_few_sentences": "One sentence. And another one.",
    "c4_long_word": PROSE + " " + "x" * 1001,
    "gopher_word_count": "Too short to be of use.",
    "gopher_word_length": " ".join(["internationalization", "electroencephalography"] * 30),
    "gopher_symbols": PROSE + " #a" * 20,
    "gopher_bullets": "\n".join(f"- {line}" for line in PROSE.split(". ")),
    "gopher_ellipsis_lines": "\n".join(f"{line}..." for line in PROSE.split(". ")),
    "gopher_letters": PROSE + " 12 34 5,6 %" * 15,
    "gopher_stop_words": "red green blue " * 30,
}


@pytest.mark.parametrize("rule", [name for name in PAGE_RULES if name != "c4_bad_words"])
def test_each_rule_refuses_what_it_is_for(rule: str) -> None:
    assert PAGE_RULES[rule](Page(REFUSED[rule]))


@pytest.mark.parametrize("rule", sorted(PAGE_RULES))
@pytest.mark.parametrize("text", [PROSE, CHINESE])
def test_prose_passes_every_rule(rule: str, text: str) -> None:
    assert not PAGE_RULES[rule](Page(text))


def test_thresholds_are_the_published_ones() -> None:
    words = ["the", "of"] + ["word"] * 48
    assert not quality.gopher_word_count(Page(" ".join(words))) and quality.gopher_word_count(Page(" ".join(words[1:])))
    assert not quality.gopher_symbols(Page("a " * 9 + "a#")) and quality.gopher_symbols(Page("a " * 8 + "a#"))
    eight, seven = "a " * 8 + "1 2", "a " * 7 + "1 2 3"
    assert not quality.gopher_letters(Page(eight)) and quality.gopher_letters(Page(seven))
    assert not quality.gopher_word_length(Page("aaa bbb")) and quality.gopher_word_length(Page("aaa bb"))
    nine, ten = "- a\n" * 9 + "a", "- a\n" * 10
    assert not quality.gopher_bullets(Page(nine)) and quality.gopher_bullets(Page(ten))


def test_bad_words_are_whole_words_except_in_chinese(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("darn\n坏词\n", encoding="utf-8")
    pattern = read_bad_words(str(tmp_path / "bad.txt"))
    assert [quality.c4_bad_words(Page(text, pattern)) for text in ("Darn it", "darning", "有坏词吗")] == [
        True,
        False,
        True,
    ]
    assert not quality.c4_bad_words(Page("darn"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_bad_words(str(tmp_path / "none.txt"))


def test_rules_of_lines() -> None:
    page = "Home | About\nThis line has more than four words.\nPlease enable JavaScript to see this page.\n"
    page += "We value you and our privacy policy.\nA fact[1] that was edited.[edit]\nRead more about this page here..."
    assert markup.without_citations("a[12] b[edit] c[citation needed] x[i]") == "a b c x[i]"
    assert "JavaScript" not in markup.without_javascript_lines(page)
    assert "privacy" not in markup.without_policy_lines(page)
    assert markup.without_policy_lines("正文在此。\n京ICP备12345号") == "正文在此。"
    kept = markup.without_fragments(page).split("\n")
    assert kept[0] == "This line has more than four words." and not any(line.endswith("...") for line in kept)
    assert markup.without_fragments("首页\n这是一句完整的话。") == "这是一句完整的话。"


def test_names() -> None:
    assert set(SETS["c4"]) | set(SETS["gopher"]) == RULES
    assert len(SETS["gopher"]) == 11 and len(SETS["c4"]) == 9


# -- repetition --------------------------------------------------------------------------------------------------------


def test_repeated_lines_and_paragraphs() -> None:
    lines = [f"line number {number} is its own" for number in range(7)]
    assert not repetition.repeats_lines(Page("\n".join(lines + lines[:1])))
    assert repetition.repeats_lines(Page("\n".join([*lines, *lines[:4]])))
    assert repetition.repeats_lines(Page("\n".join([*lines, "x" * 90, "x" * 90])))  # 1 line of 9, most characters
    assert repetition.repeats_paragraphs(Page("\n\n".join([*lines[:2], *lines[:2]])))
    assert not repetition.repeats_paragraphs(Page("\n\n".join(lines)))


def test_shares_of_phrases() -> None:
    words = ["a", "b", "a", "b", "c", "d", "e", "f"]
    assert repetition.frequent_share(words, 2) == 2 * 2 / 8
    assert repetition.frequent_share(words, 3) == 0.0
    twice = [*"abcdefg", *"abcdefg"]
    assert repetition.repeated_share(twice, 5) == 0.5
    assert repetition.repeated_share([*"aaaaaaa"], 5) == 6 / 7  # from the second one on, each character once


def test_the_quick_limit_never_hides_a_page() -> None:
    draw = random.Random(7)
    pages: list[Page] = []
    for _ in range(400):
        vocabulary = [draw.choice("abcdefgh") * draw.randint(1, 9) for _ in range(draw.randint(1, 40))]
        words = [draw.choice(vocabulary) for _ in range(draw.randint(0, 80))]
        if draw.random() < 0.5:
            words += words[: draw.randint(0, 20)]
        pages.append(Page(" ".join(words)))
    pages += [Page(PROSE), Page(CHINESE), Page(CHINESE * 3), Page("")]
    frequent, repeated = repetition.possible(pages)
    exact = [(repetition.repeats_frequent(page), repetition.repeats_ngrams(page)) for page in pages]
    for number, (often, again) in enumerate(exact):
        assert frequent[number] or not often
        assert repeated[number] or not again
    assert 0 < sum(often for often, _ in exact) < len(pages) and 0 < sum(again for _, again in exact) < len(pages)
    assert not frequent[400] and not repeated[400] and not frequent[401]


def test_long_phrases_are_found_at_every_length() -> None:
    unique = [f"w{number}" for number in range(100)]
    for n, most in repetition.REPEATED.items():
        phrase = [f"p{number}" for number in range(n)]
        words = [*unique]
        while repetition.repeated_share(words, n) <= most:
            words += [*phrase, f"x{len(words)}"]
        assert repetition.repeats_ngrams(Page(" ".join(words))) and repetition.possible([Page(" ".join(words))])[1][0]


def test_reasons_ask_only_for_the_rules_wanted() -> None:
    page = Page("\n".join(["the same line of text again"] * 20))
    assert repetition.reasons([page, Page(PROSE)], REPETITION_RULES) == ["gopher_repeated_lines", None]
    assert repetition.reasons([page], ["gopher_repeated_ngrams"]) == ["gopher_repeated_ngrams"]
    assert repetition.reasons([page], []) == [None] and repetition.reasons([], REPETITION_RULES) == []
