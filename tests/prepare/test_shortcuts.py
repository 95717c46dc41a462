"""What is fast gives what is plain: rows read, texts found, and repairs made, on any text and on real files."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.checks import are_plain, shape_fault
from luthier.data.row import MAX_DEPTH, plain_row, plain_rows
from luthier.prepare.cleaning import CleanConfig, rewriting
from luthier.prepare.engine import series
from luthier.prepare.identity import keys_of
from luthier.prepare.mend import _is_bad
from luthier.prepare.parcel import Item, Parcel, Placed, Tally
from luthier.prepare.rewriting import Rewriting
from luthier.prepare.shingles import Sizes, is_single, tokenise
from luthier.prepare.view import text_of, text_of_all, texts_of, texts_of_all

_DEEP = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)
_LINES = st.one_of(
    st.sampled_from(
        [
            *('{"text": "one"}', '{"text": "one"}\r', '{"text": "\\u0000"}', '{"text": "\\\\u0000"}', "{", "[]", "5"),
            *('{"a": 1},{"b": 2}', '{"c":[{}', "{}]}", '{"text": "[[[[{{{{"}', '{"text": "x"', '"y"}', "\ufeff{}"),
            "\\",
            f'{{"a": {_DEEP}}}',
            json.dumps({"text": "{" * (MAX_DEPTH + 5)}),
        ]
    ),
    st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=3).map(json.dumps),
)
_VALUES = st.dictionaries(
    st.sampled_from(["text", "instruction", "input", "output", "prompt", "completion", "label", "messages", "history"]),
    st.one_of(st.text(" a\n文", max_size=4), st.none(), st.integers(), st.lists(st.text(max_size=2), max_size=2)),
    max_size=4,
)
_ODD = (
    "aé \n\t\r\x00\x1b[0m\u200b\ufeff\u3000ＡＢＣ漢国锛浣ÃâÂ€™°…└─“”ÄãºÃ£¬\xa0\u0301\ufffd\uf8ff<b>&amp;@.0123456789-"
)
_TROUBLE = st.text(st.one_of(st.sampled_from(_ODD), st.characters(exclude_categories=["Cs"])), max_size=40)
_NEAR_BAD = st.lists(st.sampled_from([*"azЖ 文\nÃÂœØÙ€“°×²é1─└", "ГўВЂВ", "Ã ", "a "]), max_size=12).map("".join)
_SETTINGS = [
    CleanConfig(),
    CleanConfig(whitespace="collapse", unicode="nfkc", width="chinese"),
    CleanConfig(html=True, mask=("all",), quality=("c4",), lowercase=True),
    CleanConfig(encoding=False, chinese="simplified", mask=("email", "ip"), quality=("c4",)),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(_LINES.filter(lambda line: line and not line.isspace()), max_size=6), st.booleans(), st.booleans())
def test_lines_are_read_as_each_alone(rows: list[str], ended: bool, gaps: bool) -> None:
    lines = [row.encode() for row in rows]
    data = (b"\n\n" if gaps else b"\n").join(lines) + (b"\n" if ended else b"")
    assert plain_rows(data, lines) == [plain_row(line) for line in lines]


@settings(max_examples=300, deadline=None)
@given(st.lists(_VALUES, max_size=6))
def test_rows_that_look_sound_are(values: list[dict[str, object]]) -> None:
    for value, plain in zip(values, are_plain(values), strict=True):
        assert not (plain and shape_fault(value, None)), value
    assert are_plain(values) == [are_plain([value])[0] for value in values]
    assert texts_of_all(values) == [texts_of(value) for value in values]
    assert text_of_all(values) == [text_of(value) for value in values]


def test_most_rows_look_sound() -> None:
    rows = [{"text": "a"}, {"text": " "}, {"instruction": "a", "output": "b"}, {"text": "a", "label": "b"}]
    assert are_plain(rows) == [True, False, True, False]


@settings(max_examples=2000, deadline=None)
@given(_NEAR_BAD)
def test_a_text_is_bad_where_something_unusual_stands(text: str) -> None:
    import ftfy.badness

    assert _is_bad(text) or not ftfy.badness.is_bad(text)


def _plainly(rules: Rewriting) -> Rewriting:
    """The same rules without their signs: every rule is put to every text."""
    bare = [tuple(replace(repair, sign=None) for repair in repairs) for repairs in (rules.repairs, rules.lines)]
    return replace(rules, repairs=bare[0], lines=bare[1])


def _same(rules: Rewriting, values: list[dict[str, object]]) -> int:
    items = [Item("rows.jsonl", line, value, orjson.dumps(value)) for line, value in enumerate(values, 1)]
    quick, slow = Tally(), Tally()
    found = list(rules.applied(values, items, quick))
    assert found == list(_plainly(rules).applied(values, items, slow))
    assert quick == slow
    return sum(value != after for value, (after, _) in zip(values, found, strict=True))


@pytest.mark.parametrize("config", _SETTINGS, ids=["default", "collapse", "html", "simplified"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(_TROUBLE, min_size=1, max_size=5))
def test_texts_are_repaired_as_without_signs(config: CleanConfig, texts: list[str]) -> None:
    values = [{"instruction": text, "output": other} for text, other in zip(texts, texts[1:] + texts[:1], strict=True)]
    _same(rewriting(config), [*({"text": text} for text in texts), *values, {"label": 1}])


@pytest.mark.parametrize("config", _SETTINGS[:3], ids=["default", "collapse", "html"])
def test_real_texts_are_repaired_as_without_signs(config: CleanConfig, test_data: Path) -> None:
    values: list[dict[str, object]] = []
    for name in ("bilingual-lm/en_train.jsonl", "bilingual-lm/zh_train.jsonl"):
        lines = (test_data / name).read_bytes().splitlines()
        values += [orjson.loads(line) for line in lines[:: len(lines) // 150]]
    assert _same(rewriting(config), values) > 10


def test_rows_kept_together_are_kept_one_by_one() -> None:
    items = [Item(file, line, {"n": line}, raw) for file, line, raw in (("a", 1, b'{"n":  1}'), ("b", 7, None))]
    one, many = Parcel(), Parcel()
    for item in items:
        one.keep(item)
    many.keep_all(items[:1])
    many.keep_all([])
    many.keep_all(items[1:])
    placed = [parcel.pack(origins=True).placed[""] for parcel in (one, many)]
    assert one.lines[""] == many.lines[""] == b'{"n":  1}\n{"n":7}\n'
    for each in placed:
        assert (each.files, each.file.tolist(), each.line.tolist()) == (("a", "b"), [0, 1], [1, 7])
    assert many.written == {"": 2}
    assert Placed.of([]).files == ()


def test_keys_stay_what_they_are() -> None:
    # cached steps and reports of earlier versions rest on nothing else; xxHash3 64 of b"a" is a published value
    assert keys_of([b"a"])[0, 0] == 0xE6C632B61E964E1F
    assert keys_of(["a"])[0, 0] == keys_of([b"a"])[0, 0] == series([b"a"]).hash().to_pylist()[0]
    assert len({tuple(key) for key in keys_of([b"a", b"b", b"a"]).tolist()}) == 2


def _tokens_plainly(text: str, sizes: Sizes) -> tuple[str, int, int]:
    """A text by itself, character by character."""
    found: list[str] = []
    open_ = alone = 0
    for character in (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower():
        if is_single(character):
            found.append(character)
            open_, alone = 0, alone + 1
        elif unicodedata.category(character)[0] in "LMN":
            found[-1 if open_ else len(found) :] = [(found[-1] if open_ else "") + character]
            open_ = 1
        else:
            open_ = 0
    size = sizes.characters if 2 * alone > len(found) else sizes.words
    return " ".join(found), len(found), size


_LETTERS = "ab C中文ก。, ６Ａﬁ！～｟\u3000가\u1100\u1161㈱\u0301\x1eİΣ\n\t😀𠀀々ー1"


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(_LETTERS, max_size=12), max_size=6))
def test_texts_are_tokenised_as_one_by_one(texts: list[str]) -> None:
    sizes = Sizes(3, 5)
    assert [tuple(tokens) for tokens in tokenise(texts, sizes)] == [_tokens_plainly(text, sizes) for text in texts]
