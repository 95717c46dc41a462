"""Published rules of thumb that tell prose from what web pages also hold.  Each rule is a function of pages; true
means that a page goes.

C4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", sec. 2.2.
Gopher: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", appendix A.1.1.

Both were made for English.  In Chinese a word is a character here: numbers of words count characters, rules about the
length of words do not apply, and of stop words Chinese ones are expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError
from luthier.prepare import repetition
from luthier.prepare.markup import LINE_RULES
from luthier.prepare.mend import ANY_SPACE
from luthier.prepare.pages import Pages, hash_of, pages
from luthier.prepare.signs import counting, holding

Refused = NDArray[np.bool_]
"""Which pages a rule refuses, bool [P]."""


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

_SENTENCE_END = f"[.?!][\"')]*(?:{ANY_SPACE}|\\z)|[。？！]+"
_SENTENCES = 3
_LONGEST_WORD = 1000


def c4_lorem_ipsum(pages: Pages) -> Refused:
    """Holds "lorem ipsum", the text of designers."""
    return holding(pages.texts, "(?i:lorem ipsum)")


def c4_curly_bracket(pages: Pages) -> Refused:
    """Holds a curly bracket, which programs have and prose has not."""
    return holding(pages.texts, r"\{")


def c4_few_sentences(pages: Pages) -> Refused:
    """Fewer than 3 sentences (of the whole page, before or after lines were taken out, whichever was asked for)."""
    return counting(pages.texts, _SENTENCE_END) < _SENTENCES


def c4_long_word(pages: Pages) -> Refused:
    """A word of more than 1,000 characters (TensorFlow Datasets' c4): encoded data."""
    return ~pages.chinese_P & (pages.longest() > _LONGEST_WORD)


def c4_bad_words(pages: Pages) -> Refused:
    """A word of the list of obscene words that the user gave; the list C4 used is not part of this package."""
    bad = pages.bad_words
    return np.array([bad is not None and bad.search(text) is not None for text in pages.texts], bool)


# -- Gopher, quality ---------------------------------------------------------------------------------------------------

_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_CHINESE_STOP_WORDS = "的是了在和有不这為为這我"
_BULLETS = "•|-|\\*|●|‣|◦|·|○|■|□|▪|►"
_LINE = f"[^\n]*[^{ANY_SPACE[1:-1]}][^\n]*"


def gopher_word_count(pages: Pages) -> Refused:
    """Fewer than 50 or more than 100,000 words."""
    return (pages.words_P < 50) | (pages.words_P > 100_000)


def gopher_word_length(pages: Pages) -> Refused:
    """A mean length of words outside 3 to 10 characters."""
    mean = pages.characters_P / np.maximum(pages.words_P, 1)
    return (pages.words_P == 0) | (~pages.chinese_P & ((mean < 3) | (mean > 10)))


def gopher_symbols(pages: Pages) -> Refused:
    """More than one hash sign, or more than one ellipsis, for every ten words."""
    most = 0.1 * pages.words_P
    return (counting(pages.texts, "#") > most) | (counting(pages.texts, r"\.\.\.|…") > most)


def gopher_bullets(pages: Pages) -> Refused:
    """More than 90 % of the lines begin with a bullet."""
    begun = counting(pages.texts, f"(?:\\A|\n){ANY_SPACE}*(?:{_BULLETS})")
    return begun > 0.9 * counting(pages.texts, _LINE)


def gopher_ellipsis_lines(pages: Pages) -> Refused:
    """More than 30 % of the lines end with an ellipsis."""
    ended = counting(pages.texts, f"(?:\\.\\.\\.|…){ANY_SPACE}*(?:\n|\\z)")
    return ended > 0.3 * counting(pages.texts, _LINE)


def gopher_letters(pages: Pages) -> Refused:
    """Fewer than 80 % of the words hold a letter."""
    return pages.sums(pages.letters_W) < 0.8 * pages.words_P


def gopher_stop_words(pages: Pages) -> Refused:
    """Fewer than two of: the, be, to, of, and, that, have, with.  In Chinese fewer than two of the commonest function
    characters (ours; Gopher is English only)."""
    keys, meant = _stop_words()
    at = np.minimum(np.searchsorted(keys, pages.hash_W), len(keys) - 1)
    hit = keys[at] == pages.hash_W
    owner, word = pages.owner_W[hit], meant[at[hit]]
    fits = pages.chinese_P[owner] == (word >= len(_STOP_WORDS))
    there = np.zeros((len(pages), len(_STOP_WORDS) + len(_CHINESE_STOP_WORDS)), bool)
    there[owner[fits], word[fits]] = True
    return there.sum(axis=1) < 2


@cache
def _stop_words() -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of stop words in their usual cases, ascending, and which word each of them means."""
    cased = [word for some in _STOP_WORDS for word in (some, some.capitalize(), some.upper())]
    meant = np.repeat(np.arange(len(_STOP_WORDS)), 3)
    keys = np.concatenate(
        [hash_of(cased, is_ascii=True), hash_of(cased, is_ascii=False), hash_of([*_CHINESE_STOP_WORDS], is_ascii=False)]
    )
    meant = np.concatenate([meant, meant, len(_STOP_WORDS) + np.arange(len(_CHINESE_STOP_WORDS))])
    order = np.argsort(keys)
    return keys[order], meant[order]


PAGE_RULES: dict[str, Callable[[Pages], Refused]] = {
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
        repetition.gopher_repeated_lines,
        repetition.gopher_repeated_paragraphs,
        repetition.gopher_frequent_ngrams,
        repetition.gopher_repeated_ngrams,
    )
}
"""Rules that look at whole pages, by name, in the order in which they are asked."""
_ALL = (*LINE_RULES, *PAGE_RULES)
SETS = {
    "c4": tuple(name for name in _ALL if name.startswith("c4_")),
    "gopher": tuple(name for name in _ALL if name.startswith("gopher_")),
}
"""Rules by the paper they are from."""
RULES = frozenset(_ALL)


def reasons(texts: Sequence[str], asked: Sequence[str], bad_words: re.Pattern[str] | None = None) -> list[str | None]:
    """For every text the first of the rules asked for that refuses it.

    Args:
        bad_words: what `c4_bad_words` looks for.
    """
    found: list[str | None] = [None] * len(texts)
    left = np.arange(len(texts))
    known = pages(texts, bad_words)
    for name in asked:
        refused = PAGE_RULES[name](known)
        if refused.any():
            for number in left[refused].tolist():
                found[number] = name
            left, known = left[~refused], known.only(~refused)
    return found
