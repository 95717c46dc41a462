"""Published rules of thumb that tell prose from what web pages also hold.  Each rule is a function of a page; true
means that the page goes.

C4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", sec. 2.2.
Gopher: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", appendix A.1.1.

Both were made for English.  In Chinese a word is a character here: numbers of words count characters, rules about the
length of words do not apply, and of stop words Chinese ones are expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice
from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.prepare.markup import LINE_RULES
from luthier.prepare.scripts import is_chinese, words


@dataclass
class Page:
    """A text, with what several rules ask about it."""

    text: str
    bad_words: re.Pattern[str] | None = field(default=None, repr=False)
    """What `c4_bad_words` looks for."""

    @cached_property
    def chinese(self) -> bool:
        """Whether it is Chinese, which has no spaces."""
        return is_chinese(self.text)

    @cached_property
    def words(self) -> list[str]:
        """Its words, as they stand."""
        return words(self.text, self.chinese)

    @cached_property
    def characters(self) -> int:
        """Characters of all words."""
        return sum(map(len, self.words))

    @cached_property
    def lines(self) -> list[str]:
        """Its lines that are not blank, without white space around them."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]


@cache
def read_bad_words(path: str) -> re.Pattern[str]:
    """A pattern for the words of a file, one a line: whole words, but anywhere in Chinese, which has no boundaries.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the bad words cannot be read: {error}", where=path, code="unreadable_file") from error
    listed = sorted({line.strip() for line in lines if line.strip()}, key=lambda word: (-len(word), word))
    if not listed:
        raise ConfigError("the file has no words", where=path, code="empty_file")
    parts = [rf"(?<!\w){re.escape(word)}(?!\w)" if word.isascii() else re.escape(word) for word in listed]
    return re.compile("|".join(parts), re.IGNORECASE)


# -- C4 ----------------------------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile("[.?!][\"')]*(?:\\s|$)|[。？！]+")
_SENTENCES = 3
_LONGEST_WORD = 1000


def c4_lorem_ipsum(page: Page) -> bool:
    """Holds "lorem ipsum", the text of designers."""
    return "lorem ipsum" in page.text.lower()


def c4_curly_bracket(page: Page) -> bool:
    """Holds a curly bracket, which programs have and prose has not."""
    return "{" in page.text


def c4_few_sentences(page: Page) -> bool:
    """Fewer than 3 sentences (of the whole page, before or after lines were taken out, whichever was asked for)."""
    return sum(1 for _ in islice(_SENTENCE_END.finditer(page.text), _SENTENCES)) < _SENTENCES


def c4_long_word(page: Page) -> bool:
    """A word of more than 1,000 characters (TensorFlow Datasets' c4): encoded data."""
    return not page.chinese and len(page.text) > _LONGEST_WORD and max(map(len, page.words)) > _LONGEST_WORD


def c4_bad_words(page: Page) -> bool:
    """A word of the list of obscene words that the user gave; the list C4 used is not part of this package."""
    return page.bad_words is not None and page.bad_words.search(page.text) is not None


# -- Gopher, quality ---------------------------------------------------------------------------------------------------

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_CHINESE_STOP_WORDS = frozenset("的是了在和有不这為为這我")
_BULLETS = ("•", "-", "*", "●", "‣", "◦", "·", "○", "■", "□", "▪", "►")
_ELLIPSES = ("...", "…")


class _Letters(dict[str, bool]):
    """Whether words hold a letter; common ones are looked at once."""

    def __missing__(self, word: str) -> bool:
        if len(self) > 200_000:
            self.clear()
        found = self[word] = any(map(str.isalpha, word))
        return found


_LETTERS = _Letters()


def gopher_word_count(page: Page) -> bool:
    """Fewer than 50 or more than 100,000 words."""
    return not 50 <= len(page.words) <= 100_000


def gopher_word_length(page: Page) -> bool:
    """A mean length of words outside 3 to 10 characters."""
    if page.chinese or not page.words:
        return not page.words
    return not 3 <= page.characters / len(page.words) <= 10


def gopher_symbols(page: Page) -> bool:
    """More than one hash sign, or more than one ellipsis, for every ten words."""
    dots = page.text.count("...") + page.text.count("…")
    return max(page.text.count("#"), dots) > 0.1 * len(page.words)


def gopher_bullets(page: Page) -> bool:
    """More than 90 % of the lines begin with a bullet."""
    return sum(line.startswith(_BULLETS) for line in page.lines) > 0.9 * len(page.lines)


def gopher_ellipsis_lines(page: Page) -> bool:
    """More than 30 % of the lines end with an ellipsis."""
    return sum(line.endswith(_ELLIPSES) for line in page.lines) > 0.3 * len(page.lines)


def gopher_letters(page: Page) -> bool:
    """Fewer than 80 % of the words hold a letter."""
    return sum(map(_LETTERS.__getitem__, page.words)) < 0.8 * len(page.words)


def gopher_stop_words(page: Page) -> bool:
    """Fewer than two of: the, be, to, of, and, that, have, with.  In Chinese fewer than two of the commonest function
    characters (ours; Gopher is English only)."""
    wanted = _CHINESE_STOP_WORDS if page.chinese else _STOP_WORDS
    found = wanted.intersection(page.words)
    return len(found) < 2 and len(found.union(wanted.intersection(map(str.lower, page.words)))) < 2


PAGE_RULES: dict[str, Callable[[Page], bool]] = {
    rule.__name__: rule
    for rule in (
        c4_lorem_ipsum,
        c4_curly_bracket,
        c4_few_sentences,
        c4_long_word,
        c4_bad_words,
        gopher_word_count,
        gopher_word_length,
        gopher_symbols,
        gopher_bullets,
        gopher_ellipsis_lines,
        gopher_letters,
        gopher_stop_words,
    )
}
"""Rules that look at one page, by name, in the order in which they are asked."""
REPETITION_RULES = (
    "gopher_repeated_lines",
    "gopher_repeated_paragraphs",
    "gopher_frequent_ngrams",
    "gopher_repeated_ngrams",
)
"""Rules of `luthier.prepare.repetition`, by name."""
_ALL = (*LINE_RULES, *PAGE_RULES, *REPETITION_RULES)
SETS = {
    "c4": tuple(name for name in _ALL if name.startswith("c4_")),
    "gopher": tuple(name for name in _ALL if name.startswith("gopher_")),
}
"""Rules by the paper they are from."""
RULES = frozenset(_ALL)
