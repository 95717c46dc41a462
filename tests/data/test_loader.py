"""What a step holds is a function of seed, epoch and position; never of workers, ranks or micro-batch size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.base.errors import ConfigError
from luthier.data.batch import Group, Tokens, collate
from luthier.data.loader import Cursor, Draw, Share, Shuffled, Step, Streamed, evaluation_batches, load


class Few:
    """Groups in memory."""

    fingerprint = "few"

    def __init__(self, lengths: list[int]):
        self.lengths = np.array(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Group:
        length = int(self.lengths[i])
        return Group((Tokens(np.full(length, i, dtype=np.int32), np.ones(length, dtype=np.float32)),))


LENGTHS = [int(length) for length in np.random.default_rng(0).integers(2, 40, 37)]


def source(pack: int | None = None, *, seed: int = 1, per_step: int = 4, shuffle: bool = True) -> Shuffled:
    return Shuffled(Few(LENGTHS), seed=seed, per_step=per_step, pack_length=pack, shuffle=shuffle)


START, ALONE = Cursor(), Share(160)


def take(
    shuffled: Shuffled, count: int, cursor: Cursor = START, *, share: Share = ALONE, workers: int = 0
) -> list[Step]:
    return list(islice(load(shuffled, cursor, share, workers), count))


def drawn(steps: list[Step]) -> list[Draw]:
    return [step.draw for step in steps]


@pytest.mark.parametrize("pack", [None, 64])
def test_an_epoch_holds_every_sample_once(pack: int | None):
    shuffled = source(pack)
    steps = take(shuffled, shuffled.steps(1.0))
    assert sorted(sample for step in steps for sample in step.draw.samples) == list(range(37))
    assert steps[-1].draw.next == Cursor(1, 0)


@pytest.mark.parametrize("pack", [None, 64])
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_resuming_anywhere_loses_and_repeats_nothing(pack: int | None, workers: int):
    whole = drawn(take(source(pack), 25))
    for at in (0, 3, 8, 9, 17):
        rest = drawn(take(source(pack), 25 - at - 1, whole[at].next, workers=workers))
        assert rest == whole[at + 1 :]
    assert len({draw.digest for draw in whole}) == 25


@pytest.mark.parametrize("pack", [None, 64])
def test_ranks_and_micro_batches_share_the_same_steps(pack: int | None):
    alone = take(source(pack), 12)
    for world in (2, 3):
        for capacity in (40, 80, 1000):
            ranks = [take(source(pack), 12, share=Share(capacity, rank, world)) for rank in range(world)]
            for number, step in enumerate(alone):
                assert all(rank[number].draw == step.draw for rank in ranks)
                seen = [sample for rank in ranks for batch in rank[number].batches for sample in batch.samples]
                assert sorted(seen) == sorted(step.draw.samples)
                assert len({len(rank[number].batches) for rank in ranks}) == 1


def test_seeds_and_epochs_differ_and_repeat():
    first, again, other = (source(seed=seed).units(0) for seed in (1, 1, 2))
    assert first == again != other
    assert source().units(0) != source().units(1)
    assert [unit[0] for unit in source(shuffle=False).units(3)] == list(range(37))


def test_the_number_of_steps():
    assert source().steps(1.0) == 10
    assert source().steps(2.5) == 25
    assert source().steps(0.001) == 1
    packed = source(64)
    assert packed.steps(2.0) == sum(-(-len(packed.units(epoch)) // 4) for epoch in (0, 1)) < 20


def test_a_cursor_inside_a_step_is_refused():
    with pytest.raises(ConfigError, match="inside a step"):
        take(source(per_step=8), 1, Cursor(0, 4))


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 3), st.booleans())
def test_evaluation_sees_every_group_once(lengths: list[int], world: int, padded: bool):
    seen: list[int] = []
    sizes: set[int] = set()
    for rank in range(world):
        batches = list(evaluation_batches(Few(lengths), Share(60, rank, world, padded)))
        sizes.add(len(batches))
        seen += [sample for batch in batches for sample in batch.samples]
    assert sorted(seen) == list(range(len(lengths))) and len(sizes) == 1


def test_a_stream_resumes_at_its_position():
    def stream(start: int) -> Iterator[Group]:
        few = Few(LENGTHS)
        position = start
        while True:
            yield few[position % len(few)]
            position += 1

    whole = list(islice(load(Streamed(stream, per_step=3), Cursor(), Share(100), 2), 9))
    rest = list(islice(load(Streamed(stream, per_step=3), whole[3].draw.next, Share(100), 0), 5))
    assert drawn(rest) == drawn(whole[4:])
    first = [batch.ids_T.tolist() for batch in whole[4].batches]
    assert first == [batch.ids_T.tolist() for batch in rest[0].batches]


def test_a_batch_knows_targets_positions_and_weights():
    groups = [
        Group((Tokens(np.array([5, 6, 7], np.int32), np.array([0, 0, 2], np.float32)),)),
        Group((Tokens(np.array([8, 9], np.int32), np.array([0, 1], np.float32)),)),
    ]
    batch = collate(groups, [11, 12])
    assert batch.ids_T.tolist() == [5, 6, 7, 8, 9]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.targets_T.tolist() == [6, 7, 0, 9, 0]
    assert batch.weights_T.tolist() == [0, 2, 0, 1, 0]
    assert batch.trained_R.tolist() == [1, 3]
    assert (batch.lengths, batch.offsets, batch.groups, batch.samples) == ((3, 2), (0, 3, 5), (1, 1), (11, 12))
    assert collate([], []).tokens == 0
