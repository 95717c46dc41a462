"""Text out of HTML, and pages without the lines that every page has."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

from luthier.base.errors import MissingExtra
from luthier.prepare.mend import Repair
from luthier.prepare.signs import holding

_TAGS = (
    "html head body title meta link script style div p br hr span a b i u em strong small sub sup img ul ol li dl dt "
    "dd table thead tbody tfoot tr td th h[1-6] section article header footer nav main aside form input button select "
    "option label iframe figure figcaption blockquote pre code font center video audio source svg"
)
_TAG = re.compile(rf"<(?:!doctype\b|!--|/?(?:{_TAGS.replace(' ', '|')})(?=[\s/>]))[^<>]*>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#[0-9]{2,6}|#[xX][0-9A-Fa-f]{2,5});")
_BLOCKS = (
    "p,div,br,hr,li,tr,h1,h2,h3,h4,h5,h6,section,article,blockquote,pre,table,ul,ol,dt,dd,header,footer,figure,"
    "figcaption,nav,aside,main,form,option"
)
_BLOCK = re.compile(rf"<(?:{_BLOCKS.replace(',', '|')})\b", re.IGNORECASE)
_HIDDEN = "script,style,noscript,template,iframe,svg,button,select"
_BREAK = "\ue000"
_LINE_SPACE = re.compile("[ \t\r\n]+")
_BREAKS = re.compile(rf"[ \t]*(?:{_BREAK}[ \t]*)+")


MARKUP_SIGN = "<[!/A-Za-z]|&[#A-Za-z]"
"""RE2; a text without it has no markup."""


def has_markup(text: str) -> bool:
    """Whether a text holds a tag of HTML or an entity."""
    return ("<" in text and _TAG.search(text) is not None) or ("&" in text and _ENTITY.search(text) is not None)


def strip_markup(text: str) -> str:
    """The text a reader of the HTML sees, one block a line; scripts, styles and hidden parts are left out.

    What stands between ``` fences is code and stays as it is.

    Raises:
        MissingExtra: selectolax is not installed.
    """
    parts = text.split("```")
    parts[::2] = [_strip(part) for part in parts[::2]]
    return "```".join(parts)


def _strip(text: str) -> str:
    if _TAG.search(text) is None:
        return html.unescape(text) if _ENTITY.search(text) else text
    # Line breaks of the source mean nothing inside HTML, but text with a stray tag lives by them.
    lines = _BLOCK.search(text) is None
    tree = _parser()(text if lines else _LINE_SPACE.sub(" ", text))
    for node in tree.css(_HIDDEN):
        node.decompose()
    if lines:
        start = text[: len(text) - len(text.lstrip())]  # a parser drops it
        return start + tree.body.text() if tree.body is not None else start
    for node in tree.css(_BLOCKS):
        node.insert_before(_BREAK)
        node.insert_after(_BREAK)
    for node in tree.css("td,th"):
        node.insert_before(" ")
    return _BREAKS.sub("\n", tree.body.text()).strip() if tree.body is not None else ""


def _parser() -> Any:
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise MissingExtra("selectolax", "data", what_for="reading HTML") from error
    return LexborHTMLParser


# -- lines, by the rules of C4 -----------------------------------------------------------------------------------------
# Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (JMLR 21),
# section 2.2; numbers that the paper leaves open are those of TensorFlow Datasets' c4.

_ENDS = (".", "?", "!", '"', "。", "？", "！", "”", "」", "…", "；")
_POLICY = (
    "(?i:terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"
    "|隐私政策|隐私权政策|服务条款|使用条款|版权所有|ICP备|京公网安备)"
)
"""For RE2, which looks at all lines of a page at once."""
_CITATION = re.compile(r"\[\d{1,4}\]|\[edit\]|\[citation needed\]|\[(?:编辑|編輯|来源请求|來源請求)\]", re.IGNORECASE)
_WORDS_IN_LINE = 5
_FIVE_CHARACTERS = re.compile("[\u4e00-\u9fff](?:[^\u4e00-\u9fff]*[\u4e00-\u9fff]){4}")


def without_citations(text: str) -> str:
    """C4: pages of Wikipedia lose their [1], [edit] and [citation needed]."""
    return _CITATION.sub("", text)


def without_policy_lines(text: str) -> str:
    """C4: lines about cookies and terms of use go; Chinese ones and the registration numbers of sites likewise."""
    lines = text.split("\n")
    return "\n".join(line for line, bad in zip(lines, holding(lines, _POLICY).tolist(), strict=True) if not bad)


def without_javascript_lines(text: str) -> str:
    """C4: lines that ask for JavaScript go."""
    return _filtered(text, lambda line: "javascript" not in line.lower())


def without_fragments(text: str) -> str:
    """C4: only lines that end as a sentence ends, and not in three dots, and that have at least 5 words (in a line with
    Chinese: 5 characters) stay; menus and headings go."""
    return _filtered(text, _is_sentence)


def _is_sentence(line: str) -> bool:
    line = line.strip()
    if not line.endswith(_ENDS) or line.endswith("..."):
        return False
    long_enough = len(line.split(maxsplit=_WORDS_IN_LINE)) >= _WORDS_IN_LINE
    return long_enough or (not line.isascii() and _FIVE_CHARACTERS.search(line) is not None)


def _filtered(text: str, keep: Callable[[str], bool]) -> str:
    return "\n".join(line for line in text.split("\n") if keep(line))


def _always(text: str) -> bool:
    return True


LINE_RULES = {
    rule.name: rule
    for rule in (
        Repair("c4_citations", lambda text: "[" in text, without_citations, r"\["),
        Repair("c4_javascript", _always, without_javascript_lines, "(?i:javascript)"),
        Repair("c4_policy", _always, without_policy_lines, _POLICY),
        Repair("c4_fragments", _always, without_fragments),
    )
}
"""Rules that take something out of a text, by name."""
