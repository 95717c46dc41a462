from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
from numpy.typing import NDArray

from luthier.base.records import Chat, Message, Text, Where
from luthier.data.batch import Group
from luthier.data.preview import page, preview_rows, terminal
from luthier.data.render import Renderer
from luthier.data.report import DataReport

from .templates import tokenizer

HERE = Where("rows.jsonl", 1)


@dataclass
class Few:
    """A handful of groups in memory."""

    groups: list[Group]
    fingerprint: str = "few"

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(group) for group in self.groups], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]


def rendered(name: str, question: str, answer: str, weight: float | None = None) -> Few:
    chat = Chat((Message("user", question), Message("assistant", answer, weight=weight)), HERE)
    return Few([Group((Renderer(tokenizer(name)).chat(chat, train_on="assistant"),))])


class Visible(HTMLParser):
    """The text of a page's tokens, the attributes of its elements, and every address in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = self.inside or tag == "pre"
        self.elements.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def read(html: str) -> Visible:
    seen = Visible()
    seen.feed(html)
    return seen


@pytest.mark.parametrize("name", ["chatml", "llama2-spaced", "llama3"])
def test_pieces_are_the_whole_text_and_every_token(name: str) -> None:
    groups = rendered(name, "木琴 🎻 <b>&amp;</b>", "好的，it's   fine.\n\tÉ")
    (row,) = preview_rows(groups, tokenizer(name), 5)
    ids = groups[0].sequences[0].ids.tolist()
    assert [number for piece in row.pieces for number in piece.ids] == ids
    text = "".join(piece.text for piece in row.pieces)
    assert "木琴 🎻 <b>&amp;</b>" in text and "好的，it's   fine.\n\tÉ" in text
    assert row.tokens == len(ids) and row.trained == int((groups[0].sequences[0].weights != 0).sum())
    assert any(piece.special and piece.weight for piece in row.pieces)


def test_bytes_that_are_no_character_are_shown_one_token_at_a_time() -> None:
    cut = rendered("chatml", "x", "🎻")[0].sequences[0]
    ids = tokenizer("chatml")("🎻", add_special_tokens=False)["input_ids"]
    at = cut.ids.tolist().index(ids[0])
    tokens = type(cut)(cut.ids[: at + 2], cut.weights[: at + 2])
    (row,) = preview_rows(Few([Group((tokens,))]), tokenizer("chatml"), 1)
    assert [piece.text for piece in row.pieces[-2:]] == ["\ufffd", "\ufffd"]


def test_the_page_escapes_what_users_write_and_loads_nothing() -> None:
    nasty = "<script>alert(1)</script> \u202e \x1b[31m {body} \"'&"
    groups = rendered("chatml", nasty, "中文")
    report = DataReport(sets=[], overlap=0, max_length=64, template_note="<img src=x onerror=y>")
    html = page(preview_rows(groups, tokenizer("chatml"), 1), report)
    seen = read(html)
    assert not {"script", "img", "link", "iframe"} & set(seen.elements)
    assert not {name for name, _ in seen.attributes} & {"src", "href", "onerror"}
    assert "http:" not in html and "https:" not in html and "url(" not in html
    assert "<script>alert(1)</script> \ufffd \u241b[31m {body} \"'&" in seen.text.replace("\u21b5", "")
    assert "中文" in seen.text
    html.encode("utf-8")


def test_the_page_colours_by_weight_and_tells_ids() -> None:
    groups = rendered("chatml", "a", "b", weight=0.5)
    groups.groups += rendered("chatml", "a", "b").groups
    html = page(preview_rows(groups, tokenizer("chatml"), 9), DataReport(sets=[], overlap=0, max_length=64))
    shares = [int(share) for share in re.findall(r'<span class="trained" style="--share:(\d+)%" title', html)]
    assert len(set(shares)) == 2 and shares[0] < shares[-1]
    end = tokenizer("chatml").convert_tokens_to_ids("<|im_end|>")
    assert f'class="special trained" style="--share:60%" title="id {end}, weight 1"' in html
    assert "sample 2: " in html and "sample 3" not in html


def test_the_terminal_shows_no_escape_and_marks_trained_text() -> None:
    (row,) = preview_rows(rendered("chatml", "\x1b[2J\u202e", "yes"), tokenizer("chatml"), 1)
    shown = terminal(row)
    assert "\x1b" not in shown.plain and "\u202e" not in shown.plain
    assert shown.plain.startswith("sample 1: ")
    green = "".join(shown.plain[span.start : span.end] for span in shown.spans if "green" in str(span.style))
    assert green == "yes<|im_end|>"


def test_a_text_is_shown_like_a_chat() -> None:
    groups = Few([Group((Renderer(tokenizer("llama3")).text(Text("Wood.", HERE)),))])
    (row,) = preview_rows(groups, tokenizer("llama3"), 1)
    assert "".join(piece.text for piece in row.pieces) == "Wood.<|end_of_text|>"
    assert row.trained == row.tokens - 1
