"""Thoughts and answers, however the text is cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.serve.reasoning import Thinking

WHOLE = [
    ("<think>\nwhy < not\n</think>\n\nbecause", False, ("why < not", "because")),
    ("  <think>a</think>b</think>", False, ("a", "b</think>")),
    ("why\n</think>\n\nbecause", True, ("why", "because")),
    ("<think>never ends </thin", False, ("never ends </thin", "")),
    ("<think></think>\n\nat once", False, ("", "at once")),
    (" no thoughts, <think> in the middle", False, ("", " no thoughts, <think> in the middle")),
    ("<thi", False, ("", "<thi")),
    ("", False, ("", "")),
    ("<think>一\n\n二</think>\n三\n", False, ("一\n\n二", "三\n")),
]


@pytest.mark.parametrize(("text", "inside", "expected"), WHOLE)
@given(cuts=st.lists(st.integers(0, 40), max_size=12))
def test_pieces_make_no_difference(text: str, inside: bool, expected: tuple[str, str], cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    thinking, thought, answer = Thinking(inside), "", ""
    for start, end in pairwise(places):
        one, other = thinking.take(text[start:end], last=False)
        assert not (one and answer), "nothing is thought after the answer has begun"
        thought, answer = thought + one, answer + other
    one, other = thinking.take("", last=True)
    assert (thought + one, answer + other) == expected
