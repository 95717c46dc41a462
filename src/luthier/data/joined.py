"""Short samples joined to long sequences, so that a model also learns from what stands far back.

Unlike in a pack, the tokens of a joined sequence see all that comes before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError
from luthier.data.batch import Group, Tokens
from luthier.data.tokens import Groups


class Joined:
    """Neighbours of a set as one sequence each, as many as fit into `max_length` tokens; none is cut.

    The first token of a sample that stands behind another keeps its weight of 0: nothing tells where one ends but the
    token that ends it.
    """

    def __init__(self, groups: Groups, max_length: int):
        self.groups = groups
        self.members = neighbours(groups.lengths, max_length)
        self.lengths: NDArray[np.int64] = np.array(
            [groups.lengths[first:end].sum() for first, end in self.members], dtype=np.int64
        )
        self.fingerprint = f"joined:{max_length}:{groups.fingerprint}"

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Group:
        """Raises ConfigError for samples that are more than one sequence of next tokens."""
        groups = [self.groups[member] for member in range(*self.members[index])]
        if any(len(group.sequences) != 1 or group.sequences[0].targets is not None for group in groups):
            raise ConfigError(
                "only texts and chats can be joined", where="--combine", fix="Leave it out for this kind of training"
            )
        parts = [group.sequences[0] for group in groups]
        ids = np.concatenate([part.ids for part in parts])
        return Group((Tokens(ids, np.concatenate([part.weights for part in parts])),))


def neighbours(lengths: Sequence[int] | NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """Runs [first, end) of neighbours whose lengths add up to at most `most`; a longer one stands alone."""
    runs: list[tuple[int, int]] = []
    first = total = 0
    for place, length in enumerate(lengths):
        if place > first and total + length > most:
            runs.append((first, place))
            first, total = place, 0
        total += int(length)
    return [*runs, (first, len(lengths))] if len(lengths) else []
