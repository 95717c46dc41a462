"""Repairs of a text that leave its meaning alone: encoding, Unicode form, control characters, white space, width of
characters, and the two ways to write Chinese.

Nearly all texts need none of them.  Every repair therefore has a sign, a pattern that is looked for in many texts at
once (`signs.py`), and asks a cheap question of each text that is left (`needed`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from luthier.base.errors import MissingExtra
from luthier.prepare.scripts import HAN

Form = Literal["keep", "nfc", "nfkc"]
Space = Literal["keep", "trim", "collapse"]
Width = Literal["keep", "half", "chinese"]
Chinese = Literal["keep", "simplified", "traditional", "taiwan", "hongkong"]


@dataclass(frozen=True)
class Repair:
    """One kind of repair."""

    name: str
    needed: Callable[[str], object]
    """A quick test; false means that `apply` would change nothing."""
    apply: Callable[[str], str]
    sign: str | None = None
    """A pattern in the syntax of RE2; a text without it is not changed by `apply`.  None: any text may be."""


# -- text that was decoded with the wrong encoding ---------------------------------------------------------------------

_MOJIBAKE = re.compile(
    # the first byte of a UTF-8 character, read in one of the single-byte encodings, before a further byte
    "[\u0080-\u045f\u2018-\u203a\u20ac\u2122\u2500-\u25a0][^\x00-\x7f\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]"
)
_GB_PAIR = "[\xa1\xa3\xb0-\xd7][\xa1-\xfe]"
_GB_AS_LATIN = re.compile(f"{_GB_PAIR}(?:{_GB_PAIR}){{2,}}")
"""Three and more characters of GB 2312 (its common ones and its punctuation) that were read as Latin-1."""
_UTF8_AS_GB = re.compile("[锛銆鐨鎴浠浣鍦鏈鏄涓]")
"""Characters that UTF-8 read as GBK is full of, and Chinese is not."""
_MISREAD_SIGN = f"{_MOJIBAKE.pattern}|{_UTF8_AS_GB.pattern}"
_UNUSUAL = re.compile("[\x80-\u2fff\uf8ff\ufb00-\ufb06\ufffd]+")
"""Runs of characters of which at least one is in whatever ftfy takes for mojibake."""
_BESIDE_UNUSUAL = 8
"""Characters; more than the longest thing that ftfy looks for before it does anything."""
DAMAGE_SIGN = "\ufffd|锟斤拷|锟\\?"
_DAMAGE = re.compile(DAMAGE_SIGN)


def fix_encoding(text: str) -> str:
    """Text as it was before it was decoded wrongly: UTF-8 read as a single-byte encoding (by ftfy, Speer 2019), GB 2312
    read as Latin-1, UTF-8 read as GBK.  What cannot be turned back without loss stays.

    Raises:
        MissingExtra: ftfy is not installed.
    """
    text = _GB_AS_LATIN.sub(lambda run: run[0].encode("latin-1").decode("gb2312", "replace"), text)
    if _UTF8_AS_GB.search(text):
        try:
            back = text.encode("gb18030").decode("utf-8")
        except UnicodeError:
            back = text
        if len(back) < len(text) and re.search(f"[{HAN}]", back):
            text = back
    if _MOJIBAKE.search(text) and _is_bad(text):
        text = _ftfy().fix_encoding(text)
    return text


def _is_bad(text: str) -> bool:
    """Whether ftfy may find anything to do; what it asks first itself, of all characters, which takes it long."""
    near = _BESIDE_UNUSUAL
    spans = (run.span() for run in _UNUSUAL.finditer(text))
    return _ftfy().is_bad("\0".join([text[max(0, start - near) : end + near] for start, end in spans]))


def _looks_misread(text: str) -> bool:
    return not text.isascii() and bool(_MOJIBAKE.search(text) or _UTF8_AS_GB.search(text))


@cache
def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError as error:
        raise MissingExtra("ftfy", "data", what_for="repairing encodings") from error
    return ftfy


def is_damaged(text: str) -> bool:
    """Whether a text holds what wrong decoding left for good: replacement characters, or 锟斤拷."""
    return not text.isascii() and _DAMAGE.search(text) is not None


# -- characters --------------------------------------------------------------------------------------------------------

_ESCAPES = re.compile("\x1b\\[[0-9;?]*[ -/]*[@-~]")
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u180e\u200b\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ufdd0-\ufdef\ufffe\uffff]+"
)
_TAGS = re.compile("(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+")
"""Invisible letters, but not those that make a flag."""
_CONTROLS_SIGN = f"{_CONTROLS.pattern}|[\U000e0000-\U000e007f]"
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_BLANK = re.compile("\n{3,}")
_RUN = re.compile("[ \t\u3000]+")
ANY_SPACE = "[\t-\r\x1c-\x20\x85\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
"""Every white space, as a class for RE2, which knows that of ASCII only."""
_UNTIDY_SIGN = (
    f"\\A{ANY_SPACE}|{ANY_SPACE}\\z|[ \t\u3000]\n|\n\n\n"
    "|[\r\x0b\x0c\x85\u2028\u2029\u00a0\u1680\u2000-\u200a\u202f\u205f]"
)
_UNSTABLE_SIGN = (
    # characters that no normal form C changes, whatever stands beside them, are left out
    "[^\x00-\u02ff\u0388-\u0482\u048a-\u052f\u2002-\u20cf\u2100-\u2125\u212c-\u2328\u232b-\u2adb\u3000-\u3029\u3030-\u3098"
    "\u309b-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef\U0001f000-\U0001faff]"
)


def strip_controls(text: str) -> str:
    """Text without characters that show nothing: control characters, escape sequences of terminals, byte order marks,
    soft hyphens, zero-width spaces, overrides of direction, invisible tag letters.  Joiners, which emoji and several
    scripts need, and marks of direction stay."""
    text = _CONTROLS.sub("", _ESCAPES.sub("", text))
    return text if text.isascii() else _TAGS.sub("", text)


def _shows_all(text: str) -> bool:
    """Whether a text has no controls, no invisible characters, and no white space but spaces and line feeds.  Much
    faster than any search for them."""
    return text.replace("\n", "").isprintable()


def tidy_space(text: str) -> str:
    """One kind of space and of line break, no white space at line ends, at most one blank line in a row, none around
    the text.  Indentation and spaces within lines stay."""
    if not _shows_all(text):
        text = _SPACES.sub(" ", _BREAKS.sub("\n", text))
    text = "\n".join([line.rstrip(" \t\u3000") for line in text.split("\n")]).rstrip()
    if "\n\n\n" in text:
        text = _BLANK.sub("\n\n", text)
    first = len(text) - len(text.lstrip())
    return text[text.rfind("\n", 0, first) + 1 :]


def collapse_space(text: str) -> str:
    """As `tidy_space`, and every run of spaces is one, with none at the beginning of a line: not for code or tables."""
    return re.sub("^ | $", "", _RUN.sub(" ", tidy_space(text)), flags=re.MULTILINE)


def _untidy(text: str) -> bool:
    return text[:1].isspace() or text[-1:].isspace() or " \n" in text or "\n\n\n" in text or not _shows_all(text)


# -- width and Chinese -------------------------------------------------------------------------------------------------

_WIDE = (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
_HALVED = {**{code: code - 0xFEE0 for code in _WIDE}, 0x3000: 0x20}
_NOT_ASCII = "[^\x00-\x7f]"
_HALF_KANA = re.compile("[\uff61-\uff9f]+")
_MARKS = {",": "，", ";": "；", ":": "：", "?": "？", "!": "！", ".": "。", "(": "（", ")": "）"}
_BESIDE = f"{HAN}，。；：？！、（）《》“”"
_NARROW = re.compile(f"(?<=[{_BESIDE}])[,;:?!)](?![A-Za-z0-9/])|(?<=[{HAN}])\\.(?=$|\\s|[{_BESIDE}])|\\((?=[{HAN}])")


def _is_not_ascii(text: str) -> bool:
    return not text.isascii()


def half_width(text: str) -> str:
    """Full-width Latin letters, digits and spaces as usual ones, half-width katakana as full; punctuation stays."""
    text = _HALF_KANA.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    return text.translate(_HALVED)


def chinese_width(text: str) -> str:
    """As `half_width`, and punctuation that stands beside Chinese is full-width: 你好,世界 -> 你好，世界."""
    text = _NARROW.sub(lambda mark: _MARKS[mark[0]], half_width(text))
    # a bracket that was opened wide is closed wide, also behind Latin letters
    return re.sub(r"（([^（）()\n]{0,80})\)", r"（\1）", text)


@cache
def _opencc(name: str) -> Callable[[str], str]:
    try:
        import opencc
    except ImportError as error:
        raise MissingExtra("opencc", "data", what_for="converting Chinese") from error
    return opencc.OpenCC(name).convert


_CONVERSIONS = {"simplified": "t2s", "traditional": "s2t", "taiwan": "s2twp", "hongkong": "s2hk"}


def convert_chinese(text: str, to: Chinese) -> str:
    """Traditional characters as simplified ones or the other way (OpenCC; Taiwan with its own vocabulary).

    Raises:
        MissingExtra: opencc is not installed.
    """
    return text if to == "keep" else _opencc(_CONVERSIONS[to])(text)


def repairs(
    *, encoding: bool, unicode: Form, controls: bool, whitespace: Space, width: Width, chinese: Chinese
) -> list[Repair]:
    """The repairs that settings ask for, in the order in which they are made."""
    made: list[Repair] = []
    if encoding:
        made.append(Repair("encoding", _looks_misread, fix_encoding, _MISREAD_SIGN))
    if controls:
        made.append(Repair("control_characters", lambda text: not _shows_all(text), strip_controls, _CONTROLS_SIGN))
    if unicode != "keep":
        form: Literal["NFC", "NFKC"] = "NFC" if unicode == "nfc" else "NFKC"
        made.append(
            Repair(
                f"unicode_{unicode}",
                lambda text: not unicodedata.is_normalized(form, text),
                lambda text: unicodedata.normalize(form, text),
                _UNSTABLE_SIGN if unicode == "nfc" else "[^\x00-\x7f\u4e00-\u9fff]",
            )
        )
    if width != "keep":
        apply = half_width if width == "half" else chinese_width
        made.append(Repair("width", _is_not_ascii, apply, _NOT_ASCII))
    if chinese != "keep":
        made.append(
            Repair(f"chinese_{chinese}", _is_not_ascii, lambda text: convert_chinese(text, chinese), f"[{HAN}]")
        )
    if whitespace == "trim":
        made.append(Repair("whitespace", _untidy, tidy_space, _UNTIDY_SIGN))
    elif whitespace == "collapse":
        made.append(Repair("whitespace", lambda text: True, collapse_space))
    return made
