"""MinHash signatures in bands: texts that share a band are worth comparing (Broder 1997; Indyk and Motwani 1998).

The signatures are Daft's.  With b bands of r hashes, texts of Jaccard similarity s share a band with probability
1 - (1 - s^r)^b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.arrays import numpy_of
from luthier.prepare.engine import series
from luthier.prepare.shingles import Tokens

RECALL = 0.995
"""Least probability that a pair right at the threshold is compared."""
_SEED = 7


@dataclass(frozen=True)
class Bands:
    """How a signature is cut."""

    count: int
    rows: int

    @property
    def permutations(self) -> int:
        """Hash functions a text is summarised with."""
        return self.count * self.rows

    def found(self, similarity: float) -> float:
        """Probability that two texts of this similarity share a band."""
        return 1 - (1 - similarity**self.rows) ** self.count


def bands_for(threshold: float, permutations: int) -> Bands:
    """The longest bands that still find pairs at the threshold, and as few of them as suffice.

    Long bands let few other pairs through.  Where even bands of one hash are not enough, all permutations are used so.
    """
    for rows in range(permutations, 0, -1):
        for count in range(1, permutations // rows + 1):
            if Bands(count, rows).found(threshold) >= RECALL:
                return Bands(count, rows)
    return Bands(permutations, 1)


def band_keys(texts: Sequence[Tokens], bands: Bands) -> NDArray[np.uint64]:
    """One key for each band of each text, uint64 [rows, bands]; texts that share a key share the band.

    A text with fewer tokens than a shingle has no signature, and zeros here.
    """
    keys = np.zeros((len(texts), bands.count), np.uint64)
    odd = np.random.default_rng(_SEED).integers(0, 2**63, bands.rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    for size in sorted({tokens.size for tokens in texts}):
        mine = [number for number, tokens in enumerate(texts) if tokens.size == size <= tokens.number]
        if mine:
            joined = [texts[number].text for number in mine]
            signature = signatures(joined, bands.permutations, size).reshape(len(mine), bands.count, bands.rows)
            mixed = np.zeros((len(mine), bands.count), np.uint64)
            for place in range(bands.rows):
                mixed += signature[:, :, place] * odd[place]
            keys[mine] = mixed
    return keys


def signatures(texts: Sequence[str], permutations: int, size: int) -> NDArray[np.uint32]:
    """MinHash signatures of texts whose tokens stand between single spaces; uint32 [rows, permutations]."""
    made = series(texts)
    table = made.minhash(num_hashes=permutations, ngram_size=size, seed=_SEED, hash_function="xxhash3_64").to_arrow()
    return numpy_of(table.flatten()).reshape(len(texts), permutations)
