"""Texts for classical pipelines (bag of words, TF-IDF): one case, no punctuation, no stop words, Chinese in words.

Not for language models, which need all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from luthier.base.errors import ConfigError, MissingExtra
from luthier.prepare.segment import word_list

CHINESE_STOP_WORDS = frozenset(
    """
    的 地 得 了 着 过 是 在 和 与 及 或 而 且 但 但是 也 都 就 又 还 还是 才 很 太 最 更 把 被 将 对 对于 关于 从 自 由
    向 往 到 于 以 为 为了 因为 因此 所以 如果 虽然 然而 则 即 即使 只 只是 只有 我 你 您 他 她 它 我们 你们 他们 她们
    它们 咱们 自己 这 那 这个 那个 这些 那些 这样 那样 这里 那里 此 其 其中 某 每 各 哪 哪个 哪里 谁 什么 怎么 怎样 多少
    几 个 之 所 者 们 吗 呢 吧 啊 呀 哦 嘛 么 有 没有 不 没 会 能 可以 要 上 下 中 里 等 等等 一个 一些 一样 一种 并
    并且 或者 以及 如何 如此 例如 比如 由于 通过 根据 按照 除了 随着 当 时 时候 之后 之前 然后 已 已经 曾 正在 再 不是
    就是 那么 这么
    """.split()  # noqa: SIM905  (a list is a hundred lines)
)
"""Function words, which say little about a text's subject: particles, pronouns, conjunctions, prepositions, auxiliaries
(ours)."""
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")


@dataclass(frozen=True)
class Classical:
    """What is done to a text, in this order."""

    lowercase: bool = False
    segment: bool = False
    remove_punctuation: bool = False
    remove_stop_words: bool = False
    stop_word_file: str | None = None

    def __bool__(self) -> bool:
        return self.lowercase or self.segment or self.remove_punctuation or self.remove_stop_words

    def __call__(self, text: str) -> str:
        """The text so prepared; words are separated by single spaces once anything but the case was asked for.

        Raises:
            MissingExtra, ConfigError: a package or the file of stop words is missing.
        """
        if self.lowercase:
            text = text.lower()
        if not (self.segment or self.remove_punctuation or self.remove_stop_words):
            return text
        cut = self.segment or self.remove_stop_words
        if self.remove_punctuation:
            text = _PUNCTUATION.sub(" ", _APOSTROPHE.sub("", text))
        found = word_list(text) if cut else text.split()
        if self.remove_stop_words:
            stop = stop_words(self.stop_word_file)
            bare = _APOSTROPHE
            found = [word for word in found if bare.sub("", word.lower()) not in stop]
        return " ".join(found)


@cache
def stop_words(path: str | None = None) -> frozenset[str]:
    """Stop words in lower case: a file's, one a line, or those of scikit-learn for English and ours for Chinese.

    Raises:
        MissingExtra: scikit-learn is not installed.
        ConfigError: the file cannot be read.
    """
    if path is not None:
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the stop words cannot be read: {error}", where=path, code="unreadable_file") from error
        return frozenset(line.strip().lower() for line in lines if line.strip())
    try:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    except ImportError as error:
        raise MissingExtra("scikit-learn", "data", what_for="removing English stop words") from error
    contracted = {"dont", "doesnt", "didnt", "isnt", "arent", "wasnt", "werent", "im", "ive", "youre", "thats", "its"}
    return frozenset(ENGLISH_STOP_WORDS) | contracted | CHINESE_STOP_WORDS
