"""Sizes and shares as people read them."""

from __future__ import annotations

import pytest

from luthier.base.sizes import share, told


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 MiB"), (3 * 2**19, "1.5 MiB"), (2**30, "1.00 GiB")])
def test_sizes(size: int, text: str) -> None:
    assert told(size) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "0%"), (0, 9, "0%"), (1, 768, "<1%"), (1, 100, "1%"), (3, 4, "75%"), (9, 9, "100%")],
)
def test_shares(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text
