"""Samples as the model sees them: every token, the trained ones coloured by weight, control tokens set apart.

For the terminal, and as one HTML page that needs nothing else and no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, groupby, islice, zip_longest
from typing import cast

import numpy as np
from rich.text import Text as Coloured
from transformers import PreTrainedTokenizerFast

from luthier.base import webpage
from luthier.data.batch import Tokens
from luthier.data.report import DataReport, notes, table
from luthier.data.tokens import Groups, Kinds, Selected

_LONGEST_CHARACTER = 8
"""Most tokens that one character of a byte-level vocabulary is looked for in; an emoji takes four."""
_PICTURES = {
    **dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"),
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
}
"""Characters that would steer a terminal or turn the direction of the text are shown instead of obeyed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, or the few that make up one character together."""

    text: str
    ids: tuple[int, ...]
    weight: float
    special: bool


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One sequence of one sample."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def trained(self) -> int:
        """Tokens with a weight."""
        return sum(len(piece.ids) for piece in self.pieces if piece.weight)

    @property
    def title(self) -> str:
        """Name and counts."""
        share = self.trained / max(1, self.tokens)
        return f"{self.name}: {self.tokens} tokens, {self.trained} trained ({share:.0%})"


def preview_rows(groups: Groups, tokenizer: PreTrainedTokenizerFast, count: int) -> list[PreviewRow]:
    """Up to `count` samples, the first ones of each set; each sequence of a sample is a row."""
    rows: list[PreviewRow] = []
    for number in firsts(groups, count):
        sequences = groups[number].sequences
        for part, tokens in enumerate(sequences):
            name = f"sample {number + 1}" + (f", part {part + 1} of {len(sequences)}" if len(sequences) > 1 else "")
            rows.append(PreviewRow(name, tuple(_pieces(tokens, tokenizer))))
    return rows


def firsts(groups: Groups, count: int) -> list[int]:
    """Positions of the first samples of each set, as many of one set as of another."""
    if isinstance(groups, Kinds):
        origins = np.repeat(np.arange(len(groups.sets)), np.diff(groups.starts))
    else:
        origins = groups.picks[:, 0] if isinstance(groups, Selected) else np.zeros(len(groups), np.int64)
    places = [np.flatnonzero(origins == part).tolist() for part in np.unique(origins)]
    turns = chain.from_iterable(zip_longest(*(place[:count] for place in places)))
    return sorted(islice((number for number in turns if number is not None), count))


def _pieces(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> Iterator[Piece]:
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    # Decoders treat the first token of a text specially (some take its space away), so one always stands in front.
    anchor = cast(list[int], tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
    front = len(_decoded(tokenizer, anchor))
    ids, weights = cast(list[int], tokens.ids.tolist()), cast(list[float], tokens.weights.tolist())
    start = 0
    while start < len(ids):
        if ids[start] in special:
            yield Piece(_decoded(tokenizer, ids[start : start + 1]), (ids[start],), weights[start], True)
            start += 1
            continue
        end = start + 1
        text = _decoded(tokenizer, anchor + ids[start:end])[front:]
        while text.endswith("\ufffd") and end < len(ids) and _joins(ids, weights, special, start, end):
            end += 1
            text = _decoded(tokenizer, anchor + ids[start:end])[front:]
        if text.endswith("\ufffd"):  # these bytes never become a character: show the first token alone
            end = start + 1
            text = _decoded(tokenizer, anchor + ids[start:end])[front:]
        yield Piece(text, tuple(ids[start:end]), weights[start], False)
        start = end


def _joins(ids: Sequence[int], weights: Sequence[float], special: set[int], start: int, end: int) -> bool:
    return ids[end] not in special and weights[end] == weights[start] and end - start < _LONGEST_CHARACTER


def _decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return cast(str, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def terminal(row: PreviewRow) -> Coloured:
    """A row for the terminal: trained tokens green, brighter with their weight, control tokens in reverse."""
    shown = Coloured(row.title + "\n", style="bold")
    for (weight, special), pieces in groupby(row.pieces, key=lambda piece: (piece.weight, piece.special)):
        text = "".join(piece.text for piece in pieces).translate(_PICTURES)
        colour = "not bold dim" if weight == 0 else "not bold green" if weight < 1 else "bold green"
        shown.append(text, style=colour + (" reverse" if special else ""))
    return shown


def page(rows: Sequence[PreviewRow], report: DataReport) -> str:
    """A self-contained HTML page: the data report, then the rows; a token's ids and weight show on hovering."""
    heaviest = max((piece.weight for row in rows for piece in row.pieces), default=1.0) or 1.0
    sections = "\n".join(_section(row, heaviest) for row in rows) or "<p>There is no sample to show.</p>"
    remarks = "".join(f"<li>{_safe(note)}</li>" for note in notes(report))
    title = "What the model is trained on"
    body = [f"<h1>{title}</h1>", webpage.table(table(report), _safe), f"<ul>{remarks}</ul>", _LEGEND, sections]
    return webpage.page(title, body, _STYLE)


def _safe(text: object) -> str:
    visible = str(text).translate(_PICTURES)
    return escape(visible.encode("utf-8", "replace").decode())


def _section(row: PreviewRow, heaviest: float) -> str:
    pieces = "".join(_span(piece, heaviest) for piece in row.pieces)
    return f"<section><h2>{_safe(row.title)}</h2><pre>{pieces}</pre></section>"


def _span(piece: Piece, heaviest: float) -> str:
    kinds = ["special"] * piece.special + ["trained"] * bool(piece.weight)
    attributes = f' class="{" ".join(kinds)}"' if kinds else ""
    if piece.weight:
        attributes += f' style="--share:{round(15 + 45 * piece.weight / heaviest)}%"'
    label = f"id {' '.join(map(str, piece.ids))}, weight {piece.weight:g}"
    text = _safe(piece.text).replace("\n", "<i>\u21b5</i>\n")
    return f'<span{attributes} title="{label}">{text}</span>'


_LEGEND = (
    '<p><span class="trained" style="--share:60%">trained</span> '
    '<span class="trained" style="--share:25%">trained with less weight</span> '
    '<span>only read</span> <span class="special">control token</span> '
    "&mdash; point at a token to see where it begins and ends, its id and its weight</p>"
)
_STYLE = """
:root { color-scheme: light dark; --green: light-dark(#2e9e4f, #3fb868); --line: light-dark(#ccc, #444); }
body { font: 15px/1.6 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th, td { border-bottom: 1px solid var(--line); padding: .2rem .7rem;
       text-align: left; }
h2 { font-size: 1rem; margin-bottom: .3rem; }
pre { font: 14px/1.7 ui-monospace, Menlo, Consolas, "Noto Sans Mono CJK SC", monospace; white-space: pre-wrap;
      overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; margin: 0; }
span { unicode-bidi: isolate; }
.trained { background: color-mix(in srgb, var(--green) var(--share), transparent); }
.special { border: 1px solid var(--line); border-radius: .25rem; font-weight: 600; }
pre span:hover { outline: 2px solid currentColor; }
i { opacity: .4; font-style: normal; user-select: none; }
""".strip()
