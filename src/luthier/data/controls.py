"""Control tokens: the ones a template writes are single ids, the same characters in somebody's text are text.

Before a conversation is rendered, every control token's text inside it is hidden behind private-use characters.  What
looks like a control token in the rendered text is then written by the template, by construction.
"""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from luthier.base.records import Json
from luthier.data.batch import Tokens
from luthier.data.template import TemplateFault

_FIRST_PRIVATE, _LAST_PRIVATE = 0x100000, 0x10FEFF
SHORT, SHORT_KEPT = 32, 4096
"""Texts of at most so many characters are remembered with their ids, and so many of them."""

GUARD = "\U0010fff4\U0010fff5\U0010fff4"
"""Stands before a piece that is not the start of its text."""

Part = tuple[str, float]
"""Some text and the loss weight of its tokens."""


class Shield:
    """Hides control tokens in one conversation, and brings them back.

    Characters of private-use plane 16 are hidden too, so all of that plane is free for placeholders.
    """

    def __init__(self, controls: Controls):
        self.controls = controls
        self.characters = 0
        """Length of everything seen by `hide`."""
        self._placeholders: dict[str, str] = {}
        self._originals: dict[int, str] = {}

    def hide(self, value: Json | Mapping[str, Json] | Sequence[Mapping[str, Json]]) -> Json:
        """A copy in plain lists and dicts without a control token in any string, keys included."""
        if isinstance(value, str):
            self.characters += len(value)
            return self.controls.hidden.sub(self._placeholder, value)
        if isinstance(value, Mapping):
            return {cast(str, self.hide(key)): self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return cast(Json, value)

    def _placeholder(self, found: re.Match[str]) -> str:
        text = found[0]
        if text not in self._placeholders:
            code = _FIRST_PRIVATE + len(self._placeholders)
            if code > _LAST_PRIVATE:
                raise TemplateFault("the row holds too many different private-use characters")
            self._placeholders[text] = chr(code)
            self._originals[code] = text
        return self._placeholders[text]

    def restore(self, text: str) -> str:
        """The text with what was hidden."""
        return text.translate(self._originals) if self._originals else text


class Controls:
    """The control tokens of one tokenizer, and the encoding of text around them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        special = [(number, token) for number, token in tokenizer.added_tokens_decoder.items() if token.special]
        self.ids = {token.content: number for number, token in special}
        ordered = sorted((token for _, token in special), key=lambda token: -len(token.content))
        names = [re.escape(token.content) for token in ordered]
        self.hidden = re.compile("|".join([*names, "[\U00100000-\U0010ffff]"]))
        self.written = re.compile("|".join(map(_with_blanks, ordered)) or "(?!)")
        self.joint = False
        """Whether text is encoded from one control token to the next in one go, see `encode`."""
        # The pieces of one conversation are too small for threads, and processes that fork must not have started any.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        state = tokenizer.backend_tokenizer.to_str()
        self.digest = hashlib.sha256(state.encode()).hexdigest()
        """Hash of the tokenizer."""
        self._backend = Tokenizer.from_str(state)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._guard = self._add_guard()
        self._short: dict[str, list[int]] = {}

    def _add_guard(self) -> str:
        """A token put in front of a piece for tokenizers that treat the start of a text specially; else nothing."""
        samples = ["Wood", " wood", "木", "\n"]
        bare = self._ids(samples)
        self._backend.add_tokens([AddedToken(GUARD, normalized=False, special=False)])
        guarded = self._ids([GUARD + sample for sample in samples])
        return "" if bare == [ids[1:] for ids in guarded] else GUARD

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def names(self, text: str) -> list[str]:
        """The control tokens in a rendered text, in order."""
        return [self._name(found) for found in self.written.findall(text)]

    def text_ids(self, text: str) -> list[int]:
        """Plain text from its start; control tokens in it are text."""
        return self._ids([text.replace(GUARD, "")])[0]

    def encode(
        self, text: str, spans: Sequence[tuple[int, int, float]], base: float, restore: Callable[[str], str]
    ) -> Tokens:
        """Token ids of a rendered text, and their loss weights.

        Args:
            spans: (start, end, weight) in characters, in order, apart from each other.
            base: weight outside of spans.
            restore: undoes `Shield.hide`.

        Text is cut at control tokens, which encoders do too, and at the ends of spans, so that the tokens before a span
        do not depend on what is inside: they are what the model is given when it is served.  With `joint` text is not
        cut at spans, because the encoder would put a space there; a token over an edge belongs where its last
        character lies.
        """
        pieces = self._pieces(text, spans, base)
        texts: list[str] = []
        for piece in pieces:
            if not piece.control:
                piece.parts = [(restore(part), weight) for part, weight in piece.parts]
                texts.append((self._guard if piece.start else "") + "".join(part for part, _ in piece.parts))
        encoded = iter(self._encoded(texts))
        ids: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            if piece.control:
                ids.append(self.ids[piece.control])
                weights.append(piece.parts[0][1])
                continue
            found, ends = next(encoded)
            guarded = int(bool(self._guard and piece.start))
            ids += found[guarded:] if guarded else found
            if len(piece.parts) == 1:
                weights += [piece.parts[0][1]] * (len(found) - guarded)
            else:
                shift = len(self._guard) * guarded
                weights += _weights_at([end - shift for end in ends[guarded:]], piece.parts)
        tokens = Tokens(np.array(ids, dtype=np.int32), np.array(weights, dtype=np.float32))
        tokens.weights[:1] = 0
        return tokens

    def _encoded(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Ids of each text and, with `joint`, where each token ends."""
        if self.joint:
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
            return [(encoding.ids, [end for _, end in encoding.offsets]) for encoding in encodings]
        # What a template writes between control tokens is short and always the same.
        unknown = [text for text in texts if text not in self._short]
        fresh = dict(zip(unknown, self._ids(unknown), strict=True)) if unknown else {}
        if len(self._short) < SHORT_KEPT:
            self._short.update((text, ids) for text, ids in fresh.items() if len(text) <= SHORT)
        return [(fresh[text] if text in fresh else self._short[text], []) for text in texts]

    def _pieces(self, text: str, spans: Sequence[tuple[int, int, float]], base: float) -> list[_Piece]:
        """Control tokens and what lies between them, with the weights of `spans`."""
        edges = [edge for start, end, weight in spans for edge in ((start, weight), (end, base))]
        edges.append((len(text) + 1, base))
        pieces: list[_Piece] = []
        position, edge, weight = 0, 0, base
        for found in (*self.written.finditer(text), None):
            stop = found.start() if found else len(text)
            start, parts = position, list[Part]()
            while position < stop or edges[edge][0] <= stop:
                if edges[edge][0] <= position:
                    weight = edges[edge][1]
                    edge += 1
                    continue
                end = min(stop, edges[edge][0])
                parts.append((text[position:end], weight))
                position = end
            if self.joint and parts:
                pieces.append(_Piece("", start, parts))
            elif parts:
                pieces += [_Piece("", start or number, [part]) for number, part in enumerate(parts)]
            if found:
                pieces.append(_Piece(self._name(found[0]), stop, [("", weight)]))
                position = found.end()
        return pieces

    def _name(self, found: str) -> str:
        """The control token in a match of `written`, which may hold white space around it."""
        return found if found in self.ids else found.strip()


@dataclass(slots=True)
class _Piece:
    control: str
    """The control token, or nothing for text."""
    start: int
    """0 for what begins the text."""
    parts: list[Part]


def _with_blanks(token: AddedToken) -> str:
    """Pattern of a control token with the white space it swallows."""
    before, after = (r"\s*" if blanks else "" for blanks in (token.lstrip, token.rstrip))
    return before + re.escape(token.content) + after


def _weights_at(ends: Sequence[int], parts: Sequence[Part]) -> list[float]:
    """The weight of the character before each of `ends`."""
    borders = list(accumulate(len(part) for part, _ in parts))
    return [parts[min(bisect_left(borders, end), len(parts) - 1)][1] for end in ends]
