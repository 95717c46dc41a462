"""Chinese words, by jieba."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

from luthier.base.errors import MissingExtra
from luthier.prepare.scripts import is_chinese


def word_list(text: str) -> list[str]:
    """The words of a text: by jieba when it is Chinese, else what stands between spaces.  Punctuation of Chinese texts
    comes as words of its own.

    Raises:
        MissingExtra: jieba is not installed.
    """
    if not is_chinese(text):
        return text.split()
    return [word for word in segment(text) if not word.isspace()]


def segment(text: str) -> list[str]:
    """Chinese text as words; joined they are the text.

    Raises:
        MissingExtra: jieba is not installed.
    """
    return _dictionary().lcut(text)


def forget() -> None:
    """Give the dictionary's 62 MiB back; the next Chinese text has it read again, which takes half a second."""
    _dictionary.cache_clear()


@cache
def _dictionary() -> Any:
    """A `jieba.Tokenizer` of our own: what others add to jieba's changes no result."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # setuptools before 82 warns of how jieba looks for its files
            import jieba
    except ImportError as error:
        raise MissingExtra("jieba", "data", what_for="cutting Chinese into words") from error
    jieba.setLogLevel(logging.WARNING)  # it tells of its dictionary on stderr
    return jieba.Tokenizer()
