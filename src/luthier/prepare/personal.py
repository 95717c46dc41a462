"""Personal data and secrets in texts: found by their form and, where there is one, by their checksum.

A form can be told, a name cannot: names, addresses and dates of birth in plain words are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Literal, NamedTuple, get_args

from luthier.base.secrets import SECRET_TEXT

Kind = Literal["secret", "url", "email", "id_number", "card", "phone", "ip"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they are looked for: what one kind has taken is not looked at for the next."""


class Finding(NamedTuple):
    """Where something stands in a text."""

    kind: Kind
    start: int
    end: int


_STOPS = "\\s<>\"'`，。；：！？、（）《》【】「」“”"
_URL = re.compile(rf"(?:\b(?:https?|ftp)://|(?<![\w@.-])www\.)[^{_STOPS}]{{3,}}", re.IGNORECASE | re.ASCII)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_SECRET = re.compile(
    rf"{SECRET_TEXT.pattern}|\bAKIA[0-9A-Z]{{16}}\b|\bAIza[0-9A-Za-z_-]{{35}}\b|\bgithub_pat_[A-Za-z0-9_]{{22,}}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
    r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,8000}(?:-----END [A-Z ]{0,20}PRIVATE KEY-----)?"
)
_CHINESE_ID = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{5}(\d{8})\d{3}[0-9Xx](?![0-9A-Za-z])", re.ASCII)
_SSN = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])", re.ASCII)
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d])", re.ASCII)
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|62\d{14,17}"
    r"|6(?:011|[45]\d\d)\d{12}"
)
_PHONES = (
    # Chinese mobile numbers
    re.compile(r"(?<![\d.+-])(?:(?:\+|00)?86[- ]?)?1[3-9]\d([- ]?)\d{4}\1\d{4}(?!\d|\.\d)", re.ASCII),
    # Chinese landlines with their area code
    re.compile(r"(?<![\d.+-])(?:\(0\d{2,3}\) ?|0\d{2,3}-)[2-8]\d{6,7}(?!\d)", re.ASCII),
    # any number in the international form of E.123
    re.compile(r"(?<![\w+])\+[1-9](?:[ .()-]{0,2}\d){7,13}(?!\d)", re.ASCII),
    # North America
    re.compile(
        r"(?<![\d.-])(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-.]\d{4}(?![\d-])",
        re.ASCII,
    ),
    # Great Britain: mobile and rate numbers
    re.compile(r"(?<![\d.+-])(?:07\d{3} ?\d{6}|08[047]\d ?\d{3} ?\d{4}|09\d{9})(?!\d)", re.ASCII),
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)
_IPV6_SIGN = re.compile(":[0-9A-Fa-f]{0,4}:")
_NUMBER = re.compile(r"[0-9](?:(?:[ .()-]{0,2}[0-9]){6,}|[0-9]{0,2}(?:\.[0-9]{1,3}){3})")
"""Every number with 7 digits and more, and whatever has four parts: where all kinds made of digits are looked for."""
_AROUND = 8
"""Characters around a number that belong to it or say that it is another one: +86, (010), the X of an identity."""
_SECRET_SIGNS = ("://", "hf_", "sk-", "ghp_", "xox", "AKIA", "AIza", "github_pat_", "eyJ", "PRIVATE KEY")

_OF_NUMBERS = r"[0-9](?:(?:[ .()-]{0,2}[0-9]){6}|[0-9]{0,2}(?:\.[0-9]{1,3}){3})"
SIGNS: dict[Kind, str] = {
    "secret": "|".join(_SECRET_SIGNS),
    "url": r"://|www\.|WWW\.",
    "email": "@",
    "id_number": _OF_NUMBERS,
    "card": _OF_NUMBERS,
    "phone": _OF_NUMBERS,
    "ip": f"{_OF_NUMBERS}|{_IPV6_SIGN.pattern}",
}
"""For each kind a pattern in the syntax of RE2, without which nothing of that kind is in a text."""


def luhn(digits: str) -> bool:
    """Whether the last digit is right (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


def is_chinese_id(number: str) -> bool:
    """Whether an 18-character Chinese identity number has a date that was, and the right last character (GB 11643-1999,
    ISO 7064 MOD 11-2)."""
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    # never today's date: the same rows must give the same result tomorrow
    weighted = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(number[:17]))
    return 1850 <= born.year < 2100 and "10X98765432"[weighted % 11] == number[17].upper()


def _is_card(text: str) -> bool:
    digits = re.sub("[ -]", "", text)
    return _ISSUERS.fullmatch(digits) is not None and len(set(digits)) > 1 and luhn(digits)


def _is_address(text: str) -> bool:
    """Whether it is an address of one machine on the internet; those of private networks and examples name nobody, and
    four single digits are more likely a numbering."""
    if len(text) == 7 and "." in text:
        return False
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _urls(text: str) -> Iterable[tuple[int, int]]:
    for match in _URL.finditer(text):
        found = match[0].rstrip(".,;:!?*_~")
        while found.endswith(")") and found.count(")") > found.count("("):
            found = found[:-1].rstrip(".,;:!?")
        yield match.start(), match.start() + len(found)


Sure = Callable[[str], bool]
_OF_DIGITS: dict[Kind, tuple[tuple[re.Pattern[str], Sure | None], ...]] = {
    "id_number": ((_CHINESE_ID, is_chinese_id), (_SSN, None)),
    "card": ((_CARD, _is_card),),
    "phone": tuple((pattern, None) for pattern in _PHONES),
    "ip": ((_IPV4, _is_address),),
}


def _matches(pattern: re.Pattern[str], text: str, sure: Sure | None = None) -> Iterable[tuple[int, int]]:
    return (match.span() for match in pattern.finditer(text) if sure is None or sure(match[0]))


def _in_numbers(kind: Kind, text: str, numbers: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    for pattern, sure in _OF_DIGITS.get(kind, ()):
        for start, end in numbers:
            from_ = max(0, start - _AROUND)
            for first, last in _matches(pattern, text[from_ : end + _AROUND], sure):
                yield from_ + first, from_ + last


def _in_words(kind: Kind, text: str) -> Iterable[tuple[int, int]]:
    if kind == "secret" and any(sign in text for sign in _SECRET_SIGNS):
        return _matches(_SECRET, text)
    if kind == "url" and ("://" in text or "www." in text or "WWW." in text):
        return _urls(text)
    if kind == "email" and "@" in text:
        return _matches(_EMAIL, text)
    if kind == "ip" and _IPV6_SIGN.search(text):
        return _matches(_IPV6, text, _is_address)
    return ()


def find(text: str, kinds: Sequence[Kind] = KINDS) -> list[Finding]:
    """Personal data of some kinds, in the order of the text, none overlapping another.

    Phone numbers: Chinese mobiles and landlines, North American and British ones, and any in international form.
    Identity numbers: Chinese (with their checksum) and US social security numbers.  Cards: by issuer and Luhn checksum.
    """
    wants_digits = any(kind in kinds for kind in _OF_DIGITS)
    numbers = [match.span() for match in _NUMBER.finditer(text)] if wants_digits else []
    found: list[Finding] = []
    for kind in KINDS:
        if kind not in kinds:
            continue
        for start, end in (*_in_words(kind, text), *_in_numbers(kind, text, numbers)):
            if all(end <= other.start or start >= other.end for other in found):
                found.append(Finding(kind, start, end))
    return sorted(found, key=lambda finding: finding.start)


def mask(text: str, findings: Sequence[Finding], template: str = "<{kind}>") -> str:
    """The text with what was found replaced by the template, in which {kind} is EMAIL, PHONE and so on."""
    pieces: list[str] = []
    at = 0
    for kind, start, end in findings:
        pieces += [text[at:start], template.replace("{kind}", kind.upper())]
        at = end
    return "".join([*pieces, text[at:]])
