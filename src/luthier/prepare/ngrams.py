"""An index of the n-grams of some texts, on disk, in which workers look those of other texts up.

Texts of the index that are shorter than an n-gram count as one n-gram of their own length, if they are long enough to
say something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.shingles import Sizes, Tokens, shingle_hashes, tokenise

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Grams:
    """How texts are cut."""

    sizes: Sizes
    shortest: Sizes
    """Texts with fewer tokens than this are not looked for."""


def index_grams(texts: Sequence[str], grams: Grams) -> tuple[Numbers, NDArray[np.uint64], set[tuple[bool, int]]]:
    """The n-grams of texts that are looked for: owners int64 [S], hashes uint64 [S], and the lengths they have.

    A length comes with whether it is one of words (True) or of characters.
    """
    cut: list[Tokens] = []
    lengths: set[tuple[bool, int]] = set()
    for tokens in tokenise(texts, grams.sizes):
        words = tokens.size == grams.sizes.words
        shortest = grams.shortest.words if words else grams.shortest.characters
        size = min(tokens.size, tokens.number)
        if size < shortest:
            cut.append(Tokens("", 0, 1))
            continue
        lengths.add((words, size))
        cut.append(Tokens(tokens.text, tokens.number, size))
    owners, hashes = shingle_hashes(cut)
    return owners, hashes, lengths


class Index:
    """Hashes in ascending order with the first text each is of, in two files; opened where it is used."""

    def __init__(self, folder: Path, grams: Grams, lengths: Sequence[tuple[bool, int]]):
        self.folder, self.grams, self.lengths = folder, grams, tuple(sorted(lengths))
        self._hashes: NDArray[np.uint64] | None = None

    @classmethod
    def write(
        cls, folder: Path, owners: Numbers, hashes: NDArray[np.uint64], grams: Grams, lengths: set[tuple[bool, int]]
    ) -> Index:
        """Keep the n-grams of texts, numbered by `owners`."""
        order = np.lexsort((owners, hashes))
        hashes, owners = hashes[order], owners[order]
        first = np.ones(len(hashes), bool)
        first[1:] = hashes[1:] != hashes[:-1]
        np.save(folder / "grams.npy", hashes[first], allow_pickle=False)
        np.save(folder / "owners.npy", owners[first], allow_pickle=False)
        return cls(folder, grams, sorted(lengths))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_hashes": None}

    def __len__(self) -> int:
        return len(self._opened())

    def owners(self) -> Numbers:
        """The first text that each n-gram of the index is of."""
        return np.load(self.folder / "owners.npy", allow_pickle=False)

    def _opened(self) -> NDArray[np.uint64]:
        if self._hashes is None:
            self._hashes = np.load(self.folder / "grams.npy", mmap_mode="r", allow_pickle=False)
        assert self._hashes is not None, "it was just opened"
        return self._hashes

    def find(self, texts: Sequence[str]) -> tuple[Numbers, Numbers]:
        """N-grams of the index in texts: which text, and which n-gram; int64 [H] each, every pair once."""
        known = self._opened()
        if not len(known):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        tokens = tokenise(texts, self.grams.sizes)
        pairs: list[Numbers] = [np.empty((0, 2), np.int64)]
        # A text may hold n-grams of both kinds of script, and of every length that short texts of the index have.
        for size in sorted({size for _, size in self.lengths}):
            owners, hashes = shingle_hashes([Tokens(some.text, some.number, size) for some in tokens])
            at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            hit = known[at] == hashes
            pairs.append(np.stack([owners[hit], at[hit]], axis=1))
        found = np.unique(np.concatenate(pairs), axis=0)
        return found[:, 0], found[:, 1]
