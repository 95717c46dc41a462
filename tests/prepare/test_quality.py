"""Every published rule, on a page it refuses and on one it lets through."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from luthier.base.errors import ConfigError
from luthier.prepare import markup, quality, repetition
from luthier.prepare.pages import pages
from luthier.prepare.quality import PAGE_RULES, RULES, SETS, read_bad_words
from luthier.prepare.scripts import is_chinese, words

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


def refused(rule: str, *texts: str) -> list[bool]:
    """What a rule says of pages, alone and beside a page in another script."""
    together = PAGE_RULES[rule](pages([*texts, CHINESE])).tolist()
    assert [bool(PAGE_RULES[rule](pages([text]))[0]) for text in texts] == together[:-1]
    return together[:-1]


@pytest.mark.parametrize("rule", sorted(REFUSED))
def test_each_rule_refuses_what_it_is_for(rule: str) -> None:
    assert refused(rule, REFUSED[rule]) == [True]
    assert refused(rule, REFUSED[rule].replace(" ", " é", 1)) == [True]  # not ASCII


@pytest.mark.parametrize("rule", sorted(PAGE_RULES))
@pytest.mark.parametrize("text", [PROSE, CHINESE])
def test_prose_passes_every_rule(rule: str, text: str) -> None:
    assert refused(rule, text) == [False]


def test_thresholds_are_the_published_ones() -> None:
    words = ["the", "of"] + ["word"] * 48
    for rule, passes, fails in (
        ("gopher_word_count", " ".join(words), " ".join(words[1:])),
        ("gopher_symbols", "a " * 9 + "a#", "a " * 8 + "a#"),
        ("gopher_letters", "a " * 8 + "1 2", "a " * 7 + "1 2 3"),
        ("gopher_word_length", "aaa bbb", "aaa bb"),
        ("gopher_bullets", "- a\n" * 9 + "a", "- a\n \n" * 10),
        ("gopher_ellipsis_lines", "a\n" * 7 + "b... \n" * 3, "a\n" * 6 + "b…\n\n" * 3),
        ("gopher_stop_words", "It is THE answer To all", "It is the answer"),
        ("c4_few_sentences", 'He said: "No." Yes! Why?', "v1.2.3 is out. Now?"),
    ):
        assert refused(rule, passes, fails) == [False, True], rule


def test_words_of_pages_are_those_of_the_texts() -> None:
    draw = random.Random(3)
    parts = [
        "the",
        "é",
        "Ünï",
        "the",
        "12",
        "a-b",
        "…",
        "“x”",
        "河",
        "水流",
        "テスト",
        "한국",
        "мир",
        "\u3000",
        "_",
        "𠀀",
        "😀",
    ]
    texts = ["", " \n", PROSE, CHINESE, "x" * 3000]
    texts += [
        "".join(part + draw.choice(" \n\t,。") for part in draw.choices(parts, k=draw.randint(1, 30)))
        for _ in range(300)
    ]
    known = pages(texts)
    assert known.chinese_P.tolist() == [is_chinese(text) for text in texts]
    cut = [words(text, is_chinese(text)) for text in texts]
    assert known.words_P.tolist() == [len(some) for some in cut]
    flat = [word for some in cut for word in some]
    assert known.length_W.tolist() == [len(word) for word in flat]
    assert known.letters_W.tolist() == [any(map(str.isalpha, word)) for word in flat]
    assert known.characters_P.tolist() == [sum(map(len, some)) for some in cut]
    assert known.longest().tolist() == [max(map(len, some), default=0) for some in cut]
    for number in (2, 3, 50):  # equal words of a page have equal hashes
        mine = known.only(np.arange(len(texts)) == number)
        assert len(set(mine.hash_W.tolist())) == len(set(cut[number]))


def test_bad_words_are_whole_words_except_in_chinese(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("darn\n坏词\n", encoding="utf-8")
    pattern = read_bad_words(str(tmp_path / "bad.txt"))
    assert quality.c4_bad_words(pages(["Darn it", "darning", "有坏词吗"], pattern)).tolist() == [True, False, True]
    assert not quality.c4_bad_words(pages(["darn"]))[0]
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
    rule = "gopher_repeated_lines"
    assert refused(rule, "\n".join(lines + lines[:1]), "\n".join([*lines, *lines[:4]])) == [False, True]
    assert refused(rule, "\n".join([*lines, "x" * 90, "x" * 90])) == [True]  # 1 line of 9, most characters
    rule = "gopher_repeated_paragraphs"
    assert refused(rule, "\n\n".join([*lines[:2], *lines[:2]]), "\n\n".join(lines)) == [True, False]


def frequent_share(words: list[str], n: int) -> float:
    """Share of the characters that the commonest phrase of n words takes up, in plain Python."""
    phrases = Counter(zip(*(words[at:] for at in range(n)), strict=False))
    most = max(phrases.values(), default=0)
    longest = max((sum(map(len, phrase)) for phrase, count in phrases.items() if count == most), default=0)
    return most * longest / max(1, sum(map(len, words))) if most > 1 else 0.0


def repeated_share(words: list[str], n: int) -> float:
    """Share of the characters that stand in a phrase of n words seen before, in plain Python."""
    seen: set[tuple[str, ...]] = set()
    covered = [False] * len(words)
    for at, phrase in enumerate(zip(*(words[at:] for at in range(n)), strict=False)):
        if phrase in seen:
            covered[at : at + n] = [True] * n
        seen.add(phrase)
    return sum(len(word) for word, again in zip(words, covered, strict=True) if again) / max(1, sum(map(len, words)))


def test_shares_of_phrases() -> None:
    words = ["a", "b", "a", "b", "c", "d", "e", "f"]
    assert frequent_share(words, 2) == 2 * 2 / 8 and frequent_share(words, 3) == 0.0
    assert repeated_share([*"abcdefg", *"abcdefg"], 5) == 0.5
    assert repeated_share([*"aaaaaaa"], 5) == 6 / 7  # from the second one on, each character once


def test_phrases_are_counted_as_in_plain_python() -> None:
    draw = random.Random(7)
    texts: list[str] = []
    for number in range(400):
        vocabulary = [
            draw.choice("abcdefghé"[: 8 + number % 2]) * draw.randint(1, 9) for _ in range(draw.randint(1, 40))
        ]
        some = [draw.choice(vocabulary) for _ in range(draw.randint(0, 80))]
        if draw.random() < 0.5:
            some += some[: draw.randint(0, 20)]
        texts.append(" ".join(some))
    texts += [PROSE, CHINESE, CHINESE * 3, ""]
    cut = [words(text, is_chinese(text)) for text in texts]
    often = [any(frequent_share(some, n) > most for n, most in repetition.FREQUENT.items()) for some in cut]
    again = [any(repeated_share(some, n) > most for n, most in repetition.REPEATED.items()) for some in cut]
    assert repetition.gopher_frequent_ngrams(pages(texts)).tolist() == often
    assert repetition.gopher_repeated_ngrams(pages(texts)).tolist() == again
    assert 0 < sum(often) < len(texts) and 0 < sum(again) < len(texts) and again[402]


def test_long_phrases_are_found_at_every_length() -> None:
    unique = [f"w{number}" for number in range(100)]
    for n, most in repetition.REPEATED.items():
        phrase = [f"p{number}" for number in range(n)]
        some = [*unique]
        while repeated_share(some, n) <= most:
            some += [*phrase, f"x{len(some)}"]
        assert refused("gopher_repeated_ngrams", " ".join(some)) == [True]


def test_the_first_rule_asked_for_is_the_reason() -> None:
    page = "\n".join(["the same line of text again"] * 20)
    gopher = [name for name in PAGE_RULES if name in SETS["gopher"]]
    assert quality.reasons([page, PROSE, "short"], gopher) == ["gopher_repeated_lines", None, "gopher_word_count"]
    assert quality.reasons([page], ["gopher_repeated_ngrams"]) == ["gopher_repeated_ngrams"]
    assert quality.reasons([page], []) == [None] and quality.reasons([], gopher) == []
