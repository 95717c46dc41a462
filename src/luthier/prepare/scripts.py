"""The scripts a text is written in, and its words: between spaces, or characters where a script has none."""

from __future__ import annotations

import re

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SCRIPTS = {
    "Han": HAN,
    "Kana": "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9d",
    "Hangul": "\uac00-\ud7af\u1100-\u11ff\u3130-\u318f",
    "Latin": "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff",
    "Hebrew": "\u0590-\u05ff",
    "Thai": "\u0e00-\u0e7f",
    "Devanagari": "\u0900-\u097f",
}
RANGES = {
    name: [(ord(low), ord(high)) for low, high in re.findall("(.)-(.)", ranges, re.DOTALL)]
    for name, ranges in _SCRIPTS.items()
}
"""First and last code points of each script, by its name."""
_RUNS = {name: re.compile(f"[{ranges}]+") for name, ranges in _SCRIPTS.items()}
_SINGLE = f"{HAN}{_SCRIPTS['Kana']}"
_TOKENS = re.compile(f"[{_SINGLE}]|[^\\W{_SINGLE}]+")


def characters(text: str) -> dict[str, int]:
    """Letters of each script that occurs, by its name."""
    if text.isascii():
        latin = sum(map(len, _RUNS["Latin"].findall(text)))
        return {"Latin": latin} if latin else {}
    counts = {name: sum(map(len, runs.findall(text))) for name, runs in _RUNS.items()}
    return {name: count for name, count in counts.items() if count}


def is_chinese(text: str) -> bool:
    """Whether Han characters are at least half of the letters, a word of another script counting as one, and hardly
    any kana stand among them."""
    if text.isascii():
        return False
    han = sum(map(len, _RUNS["Han"].findall(text)))
    if not han:
        return False
    kana = sum(map(len, _RUNS["Kana"].findall(text)))
    others = sum(len(_RUNS[name].findall(text)) for name in ("Latin", "Hangul", "Cyrillic"))
    return han >= others and kana * 20 <= han


def words(text: str, chinese: bool) -> list[str]:
    """What counts as a word: what stands between spaces; in Chinese every character, and every run of other letters
    or digits."""
    return _TOKENS.findall(text) if chinese else text.split()
