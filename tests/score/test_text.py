"""Text scores: fixed numbers, which EvalScope 1.14 gives for the same texts, and EvalScope itself where it is there."""

from __future__ import annotations

import pytest

from luthier.score.text import bleu, exact_match, f1, longest_common, rouge, span_f1

PAIRS = [
    ("今天天气很好，我们去公园散步。", "今天的天气真好，我们一起去公园玩。"),
    ("制琴师把云杉面板刨薄。\n\n它发出声音。", "制琴师把面板刨薄，直到它发出声音。"),
    ("The violin maker can't plane the top.", "The violin maker planes the spruce top, until it rings."),
    ('He didn\'t say "no". Lee (35) left.', 'He did not say "no"! Lee, 35, left.'),
    ("Really?Yes sir......no", "Really? Yes"),
    ("", "一个参考"),
    ("same words here", "same words here"),
]
"""Prediction and reference."""

EXPECTED: list[dict[str, float]] = [
    {
        "bleu-1": 0.477687540383,
        "bleu-2": 0.268699241465,
        "bleu-3": 0.102361615796,
        "bleu-4": 0.0,
        "rouge-1-r": 0.5,
        "rouge-1-p": 0.666666666667,
        "rouge-1-f": 0.571428566531,
        "rouge-2-r": 0.272727272727,
        "rouge-2-p": 0.375,
        "rouge-2-f": 0.315789468809,
        "rouge-l-r": 0.5,
        "rouge-l-p": 0.666666666667,
        "rouge-l-f": 0.571428566531,
    },
    {
        "bleu-1": 0.692307692308,
        "bleu-2": 0.5,
        "bleu-3": 0.272727272727,
        "bleu-4": 0.0,
        "rouge-1-r": 0.818181818182,
        "rouge-1-p": 0.818181818182,
        "rouge-1-f": 0.818181813182,
        "rouge-2-r": 0.6,
        "rouge-2-p": 0.5,
        "rouge-2-f": 0.545454540496,
        "rouge-l-r": 0.818181818182,
        "rouge-l-p": 0.692307692308,
        "rouge-l-f": 0.749999995035,
    },
    {
        "bleu-1": 0.477687540383,
        "bleu-2": 0.179132827643,
        "bleu-3": 0.102361615796,
        "bleu-4": 0.0,
        "rouge-1-r": 0.4,
        "rouge-1-p": 0.571428571429,
        "rouge-1-f": 0.47058823045,
        "rouge-2-r": 0.222222222222,
        "rouge-2-p": 0.333333333333,
        "rouge-2-f": 0.266666661867,
        "rouge-l-r": 0.4,
        "rouge-l-p": 0.571428571429,
        "rouge-l-f": 0.47058823045,
    },
    {
        "bleu-1": 0.714285714286,
        "bleu-2": 0.384615384615,
        "bleu-3": 0.166666666667,
        "bleu-4": 0.090909090909,
        "rouge-1-r": 0.375,
        "rouge-1-p": 0.428571428571,
        "rouge-1-f": 0.399999995022,
        "rouge-2-r": 0.0,
        "rouge-2-p": 0.0,
        "rouge-2-f": 0.0,
        "rouge-l-r": 0.375,
        "rouge-l-p": 0.428571428571,
        "rouge-l-f": 0.399999995022,
    },
    {
        "bleu-1": 0.5,
        "bleu-2": 0.4,
        "bleu-3": 0.25,
        "bleu-4": 0.0,
        "rouge-1-r": 1.0,
        "rouge-1-p": 0.5,
        "rouge-1-f": 0.666666662222,
        "rouge-2-r": 1.0,
        "rouge-2-p": 0.333333333333,
        "rouge-2-f": 0.49999999625,
        "rouge-l-r": 1.0,
        "rouge-l-p": 0.5,
        "rouge-l-f": 0.666666662222,
    },
    {
        "bleu-1": 0.0,
        "bleu-2": 0.0,
        "bleu-3": 0.0,
        "bleu-4": 0.0,
        "rouge-1-r": 0.0,
        "rouge-1-p": 0.0,
        "rouge-1-f": 0.0,
        "rouge-2-r": 0.0,
        "rouge-2-p": 0.0,
        "rouge-2-f": 0.0,
        "rouge-l-r": 0.0,
        "rouge-l-p": 0.0,
        "rouge-l-f": 0.0,
    },
    {
        "bleu-1": 1.0,
        "bleu-2": 1.0,
        "bleu-3": 1.0,
        "bleu-4": 0.0,
        "rouge-1-r": 1.0,
        "rouge-1-p": 1.0,
        "rouge-1-f": 0.999999995,
        "rouge-2-r": 1.0,
        "rouge-2-p": 1.0,
        "rouge-2-f": 0.999999995,
        "rouge-l-r": 1.0,
        "rouge-l-p": 1.0,
        "rouge-l-f": 0.999999995,
    },
]


@pytest.mark.parametrize(("pair", "expected"), list(zip(PAIRS, EXPECTED, strict=False)))
def test_bleu_and_rouge_are_those_of_evalscope(pair: tuple[str, str], expected: dict[str, float]) -> None:
    found = bleu(*pair) | rouge(*pair)
    assert found == pytest.approx(expected, abs=1e-9)


def test_words_of_several_languages_count() -> None:
    assert exact_match("The Answer.", ["answer"]) == 1
    assert exact_match("北京。", ["北京"]) == 1
    assert exact_match("北京市", ["北京"]) == 0
    assert f1("the red house", ["a red car", "house"]) == pytest.approx(2 / 3)
    assert f1("北京市", ["北京"]) == pytest.approx(2 * 2 / 5)
    assert f1("", [""]) == 1 and f1("x", [""]) == 0
    # CMRC counts one run of words, not a bag of them.
    assert span_f1("京北市", ["北京"]) == pytest.approx(2 * 1 / 5)
    assert f1("京北市", ["北京"]) == pytest.approx(2 * 2 / 5)


def test_the_longest_common_subsequence_is_that_of_the_textbook() -> None:
    def plain(one: str, other: str) -> int:
        row = [0] * (len(other) + 1)
        for left in one:
            previous = row
            row = [0]
            for at, right in enumerate(other):
                row.append(previous[at] + 1 if left == right else max(previous[at + 1], row[at]))
        return row[-1]

    for one, other in (("", ""), ("a", ""), ("abcbdab", "bdcaba"), ("xxxyx", "yxxxx"), ("abc" * 30, "cab" * 25)):
        assert longest_common(one, other) == plain(one, other)
