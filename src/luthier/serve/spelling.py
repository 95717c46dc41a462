"""Single tokens as text and bytes, which a token may hold only part of a character of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

from transformers import PreTrainedTokenizerFast


class Spelling:
    """The tokens of one tokenizer, one by one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as logprobs show it; JSON has no minus infinity."""
        text, spelt = self.of(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(spelt)}

    def read(self, ids: Sequence[int], *, marks: bool) -> tuple[str, tuple[int, ...]]:
        """Tokens as text, and where in it each begins, in characters.

        A character that several tokens hold parts of belongs to all of them.

        Args:
            marks: show control tokens.
        """
        places: list[int] = []
        text, settled, end, place = "", 0, 0, 0
        for number in range(len(ids)):
            places.append(place)
            # Some tokenizers write a token differently behind others, so the last ones that were settled come along.
            before = self._decoded(ids[settled:end], marks)
            now = self._decoded(ids[settled : number + 1], marks)
            place = max(place, len(text) + len(now.rstrip("\ufffd")) - len(before))
            if not now.endswith("\ufffd") or number == len(ids) - 1:
                text += now[len(before) :]
                settled, end, place = end, number + 1, len(text)
        return text, tuple(places)

    def _decoded(self, ids: Sequence[int], marks: bool) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=not marks, clean_up_tokenization_spaces=False)  # pyright: ignore[reportReturnType]

    def of(self, token: int) -> tuple[str, bytes]:
        """Text and bytes of a token."""
        name: Any = self._tokenizer.convert_ids_to_tokens(token)
        text: Any = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        alphabet = _alphabet()
        if self._byte_level and isinstance(name, str) and token not in self._added and set(name) <= alphabet.keys():
            return text, bytes(alphabet[character] for character in name)
        if isinstance(name, str) and len(name) == 6 and name.startswith("<0x"):  # byte fallback of SentencePiece
            return text, bytes([int(name[3:5], 16)])
        return text, text.encode()

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in str(self._tokenizer.backend_tokenizer.decoder)

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.added_tokens_decoder)


@cache
def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (Radford et al. 2019): printable ones themselves,
    the others, in order, characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
