"""How near a text is to a reference: BLEU, ROUGE, exact match and F1, in Chinese and English.

BLEU and ROUGE give the numbers of EvalScope's general_qa on the same texts.  Their formulas and words are its own:

- words: jieba's where a text holds a Chinese character; else, for BLEU, those of the Penn Treebank (R. MacIntyre's
  rules of 1995, applied to each sentence), and for ROUGE what stands between spaces.
- bleu-n: brevity penalty times the clipped precision of n-grams of this one length (Papineni et al. 2002, without
  smoothing), as NLTK's sentence_bleu with all weight on n.
- rouge-n: overlap of the *sets* of n-grams; rouge-l: the longest common subsequence of the whole texts (Lin 2004);
  f = 2pr / (p + r + 1e-8), as in rouge-chinese.

sacrebleu and rouge-score count repeated n-grams, smooth and tokenise otherwise, and give other numbers.

Exact match and F1 are those of SQuAD 1.1 (Rajpurkar et al. 2016) with the words of MLQA (Lewis et al. 2020) for
Chinese, where each character is a word; `span_f1` is that of CMRC 2018 (Cui et al. 2019).
"""

from __future__ import annotations

import logging
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from luthier.base.errors import MissingExtra

_CHINESE = re.compile("[\u4e00-\u9fa5]")
_IDEOGRAPH = re.compile("[\u3400-\u9fff\uf900-\ufaff]")


def is_chinese(text: str) -> bool:
    """Whether a text holds a Chinese character."""
    return _CHINESE.search(text) is not None


def bleu(prediction: str, reference: str) -> dict[str, float]:
    """bleu-1 to bleu-4 of one text; 0 where no n-gram is shared."""
    found, wanted = _bleu_words(prediction), _bleu_words(reference)
    penalty = 1.0 if len(found) > len(wanted) else math.exp(1 - len(wanted) / len(found)) if found else 0.0
    shared_any = bool(Counter(found) & Counter(wanted))
    scores: dict[str, float] = {}
    for size in range(1, 5):
        mine, theirs = Counter(_ngrams(found, size)), Counter(_ngrams(wanted, size))
        shared = sum((mine & theirs).values()) if shared_any else 0
        scores[f"bleu-{size}"] = penalty * shared / max(1, sum(mine.values()))
    return scores


def rouge(prediction: str, reference: str) -> dict[str, float]:
    """rouge-1, rouge-2 and rouge-l, each as recall r, precision p and f; 0 where a text is empty."""
    scores: dict[str, float] = {}
    found, wanted = _rouge_words(prediction), _rouge_words(reference)
    for size in (1, 2):
        mine, theirs = set(_ngrams(found, size)), set(_ngrams(wanted, size))
        scores |= _rates(f"rouge-{size}", len(mine & theirs), len(mine), len(theirs))
    return scores | _rates("rouge-l", longest_common(found, wanted), len(found), len(wanted))


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the bits of one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & every
    return len(one) - row.bit_count()


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where a prediction is one of the references but for case, punctuation, articles and spaces."""
    found = " ".join(_answer_words(prediction))
    return float(any(found == " ".join(_answer_words(reference)) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, for the best reference; 1 where both have none."""
    return max((_bag_f1(_answer_words(prediction), _answer_words(reference)) for reference in references), default=0.0)


def span_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of the longest run of words that prediction and reference share, for the best reference (CMRC 2018)."""
    found = _answer_words(prediction, articles=True)
    best = 0.0
    for reference in references:
        wanted = _answer_words(reference, articles=True)
        shared = _longest_run(found, wanted)
        best = max(best, 2 * shared / (len(found) + len(wanted)) if shared else 0.0)
    return best


def _rates(name: str, shared: int, found: int, wanted: int) -> dict[str, float]:
    recall, precision = shared / max(1, wanted), shared / max(1, found)
    f = 2 * precision * recall / (precision + recall + 1e-8)
    return {f"{name}-r": recall, f"{name}-p": precision, f"{name}-f": f}


def _ngrams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]


@cache
def _jieba() -> Any:
    try:
        import jieba
    except ImportError as error:
        raise MissingExtra("jieba", "eval", what_for="scoring Chinese text") from error
    jieba.setLogLevel(logging.WARNING)  # it reports loading its dictionary
    return jieba


@lru_cache(4096)
def _bleu_words(text: str) -> list[str]:
    if is_chinese(text):
        return list(_jieba().cut(text))
    return [word for sentence in _sentences(text) for word in _treebank(sentence)]


@lru_cache(4096)
def _rouge_words(text: str) -> list[str]:
    """Words between spaces.  What ends a Chinese sentence also ends a line, and a blank line is one empty word."""
    if is_chinese(text):
        text = " ".join(_jieba().cut(text))
    for ends in ("([。！？?])([^”’])", r"(\.{6})([^”’])", "(…{2})([^”’])", "([。！？?][”’])([^，。！？?])"):
        text = re.sub(ends, r"\1\n\2", text)
    lines = text.rstrip().split("\n")
    return [word for line in lines if line for word in " ".join(line.split()).split(" ")]


_ABBREVIATED = r"(?<!\b[^\W\d])(?<!\b(?:Mr|Ms|Dr|St|vs))(?<!\b(?:Mrs|etc))(?<!\bProf)"
_SENTENCE = re.compile(rf"(?:(?<=[?!])|(?<=[^.]{_ABBREVIATED}\.))([\"'”’)\]]*)\s+(?=[^\sa-z])")


def _sentences(text: str) -> list[str]:
    """Sentences of English: they end at . ? or ! before a space and anything but a small letter.

    NLTK learns abbreviations from a corpus; here they are single letters and the usual titles.
    """
    parts = _SENTENCE.split(text.strip())
    return [text + closing for text, closing in zip(parts[::2], [*parts[1::2], ""], strict=True)]


_SEPARATE = re.compile(r"(\.{2,}|--|`+|''|[;@#$%&?!*()\[\]{}<>«»“”‘’„\"‒-―]|[,:](?!\d))")
_LAST_PERIOD = re.compile(r"(?<=[^.])\.(?=[\])}>\"'»”’ ]*$)")
_CLITIC = re.compile(r"(?<=[^' ])('s|'m|'d|'ll|'re|'ve|n't|')$", re.IGNORECASE)
_OPENED = re.compile(r"^'(?=\w)(?!(?:re|ve|ll|m|t|s|d|n)\b)", re.IGNORECASE)
_GROWN = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3, "d'ye": 1, "more'n": 4}


def _treebank(sentence: str) -> list[str]:
    """Words of an English sentence as the Penn Treebank has them: punctuation, clitics and grown-together words apart.

    A straight double quote becomes `` where it opens and '' where it closes.
    """
    sentence = re.sub(r"(^\"|(?<=[ (\[{<])(?:\"|''))", " `` ", sentence).replace('"', " '' ")
    sentence = _LAST_PERIOD.sub(" . ", sentence, count=1)
    words: list[str] = []
    for part in _SEPARATE.sub(r" \1 ", sentence).split():
        words += [part] if part == "''" else _apart(part)
    return words


def _apart(word: str) -> list[str]:
    if _OPENED.match(word):
        return ["'", *_apart(word[1:])]
    if cut := _GROWN.get(word.lower()):
        return [word[:cut], word[cut:]]
    clitic = _CLITIC.search(word)
    return [*_apart(word[: clitic.start()]), clitic[0]] if clitic else [word]


_ARTICLES = frozenset({"a", "an", "the"})


@lru_cache(4096)
def _answer_words(text: str, articles: bool = False) -> list[str]:
    """Lower-case words without punctuation, each Chinese character one; articles left out unless asked for."""
    text = "".join("" if _is_mark(sign) else sign for sign in text.lower())
    words = _IDEOGRAPH.sub(r" \g<0> ", text).split()
    return [word for word in words if articles or word not in _ARTICLES]


def _is_mark(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def _bag_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(list(found) == list(wanted))
    return 2 * sum((Counter(found) & Counter(wanted)).values()) / (len(found) + len(wanted))


def _longest_run(one: Sequence[str], other: Sequence[str]) -> int:
    best, row = 0, [0] * (len(other) + 1)
    for word in one:
        row = [0, *(row[at] + 1 if word == other[at] else 0 for at in range(len(other)))]
        best = max(best, *row)
    return best
