"""Letters and numbers inside what models write."""

from __future__ import annotations

from fractions import Fraction

import pytest

from luthier.score.answers import letters, number, same_number


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Answer: B", "B"),
        ("答案：C", "C"),
        ("答案：**D**。", "D"),
        ("I first thought ANSWER: A, but ANSWER: (B) because A is wrong.", "B"),
        ("ANSWER: B, not C", "B"),
        ("ANSWER: \\boxed{C}", "C"),
        ("ANSWER: A, C", "AC"),
        ("ANSWER: AC", "AC"),
        ("ANSWER: A and C", "AC"),
        ("答案：A、C", "AC"),
        ("ANSWER: [LETTER]", ""),  # an echo of the instruction: its last capital is no option
        ("B", "B"),
        ("it must be (D)", "D"),
        ("it is E", ""),
        ("no idea", ""),
        ("", ""),
    ],
)
def test_letters_are_read_as_evalscope_reads_them(text: str, found: str) -> None:
    assert letters(text, 4) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("16 - 3 = 13.\n#### 18", Fraction(18)),
        ("#### $1,234.50", Fraction("1234.5")),
        ("so \\boxed{-7}", Fraction(-7)),
        ("The answer is 3/4.", Fraction(3, 4)),
        ("12 apples and 5 pears", Fraction(5)),
        ("1/0", None),
        ("none", None),
    ],
)
def test_the_number_of_a_solution(text: str, found: Fraction | None) -> None:
    assert number(text) == found


def test_numbers_are_compared_by_value() -> None:
    assert same_number("It costs $8", ["8.0"])
    assert same_number("#### 1,000", ["#### 1000"])
    assert not same_number("nothing", ["8"])
