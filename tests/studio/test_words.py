"""Every word of the pages is in one table, in both languages, and every word there is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import luthier.studio
from luthier.run.state import LIVE
from luthier.studio.figures import ago, gib, left, number, size, steps
from luthier.studio.words import WORDS, language_of, words_in

HOUSE = Path(luthier.studio.__file__).parent
PAGES = sorted((HOUSE / "pages").glob("*.py"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
COMPUTED = {*LIVE, "finished", "stopped", "failed", "running", "done", "ended", "best", "latest"}
"""States and marks: asked for by a variable."""
SILENT = {"classes", "props", "style", "mark", "add_slot", "run_javascript", "add_head_html", "element", "replace"}
"""Calls whose texts are no words for a reader."""


def test_every_word_is_there_in_both_languages() -> None:
    for name, (english, chinese) in WORDS.items():
        assert english.strip() and chinese.strip(), name
        assert not CHINESE.search(english) or name == "other_language"
        assert CHINESE.search(chinese) or name == "other_language", name
        assert english.count("{}") == chinese.count("{}"), name
    assert words_in("en")("runs") == "Runs" and words_in("zh")("runs") == "训练"


def asked(tree: ast.AST) -> Iterator[str]:
    """Names of words that a module asks for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _called(node) in ("t", "_t"):
            yield from (part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_pages_ask_for_words_that_there_are_and_for_all_of_them() -> None:
    known: set[str] = set()
    for file in [*PAGES, HOUSE / "figures.py"]:
        names = set(asked(ast.parse(file.read_text(encoding="utf-8"))))
        assert names <= set(WORDS), file.name
        known |= names
    constants = {
        node.value
        for file in [*PAGES, HOUSE / "figures.py"]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    titles = {name for name in WORDS if " " in name}
    assert all(f'"{name}"' in (HOUSE.parent / "run" / "usage.py").read_text(encoding="utf-8") for name in titles)
    unused = set(WORDS) - known - COMPUTED - constants - titles
    assert unused == set(), "words that nobody says"


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_no_sentence_stands_in_a_page(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    silent = {
        id(part)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and _called(node) in SILENT)
        or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper())
        for part in ast.walk(node)
        if not (isinstance(node, ast.Call) and part in ast.walk(node.func))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            silent.add(id(node.value))  # a docstring
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)) or id(node) in silent:
            continue
        assert not CHINESE.search(node.value), node.value
        assert not re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", node.value), f"{file.name}:{node.lineno}: {node.value!r}"


def test_the_language_is_the_reader_s() -> None:
    assert language_of(None, "zh-CN,zh;q=0.9,en;q=0.8") == "zh"
    assert language_of(None, "de, en") == "en"
    assert language_of("en", "zh-CN") == "en"
    assert language_of("zh", "en") == "zh"
    assert language_of("<script>", "") == "en"


def test_figures() -> None:
    en, zh = words_in("en"), words_in("zh")
    assert (ago(5, en), ago(125, en), ago(7200, zh), ago(90_000, en)) == ("5 s ago", "2 min ago", "2 小时前", "1 d ago")
    assert (number(None), number(0.154761), number(12345.6)) == ("–", "0.1548", "12,346")
    assert (gib(0.745), left(65.0), left(None), steps(3, 0), steps(3, 9)) == ("0.7 GiB", "1:05", "–", "3", "3 / 9")
    assert (size(12), size(1_200_000)) == ("12 B", "1.2 MB")
