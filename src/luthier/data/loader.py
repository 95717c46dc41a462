"""From a set of groups to the micro-batches of each optimizer step.

What a step holds is a pure function of (seed, epoch, position): never of world size, workers or micro-batch size.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError
from luthier.data.batch import Batch, Group, collate
from luthier.data.pack import best_fit_decreasing, epoch_packs, micro_batches
from luthier.data.tokens import Groups, Kinds


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far training has read: `consumed` samples of epoch `epoch`."""

    epoch: int = 0
    consumed: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """The samples of one optimizer step, over all devices."""

    samples: tuple[int, ...]
    next: Cursor

    @property
    def digest(self) -> str:
        """Hash of the samples and their order."""
        return hashlib.blake2b(np.asarray(self.samples, dtype=np.int64).tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step as this device runs it."""

    draw: Draw
    batches: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """How a step is cut up: micro-batches of at most `capacity` tokens, of which this rank runs every `world`-th."""

    capacity: int
    rank: int = 0
    world: int = 1
    padded: bool = False

    def halved(self, *, where: int | None) -> Share:
        """With half the capacity, where the capacity is `where`."""
        return replace(self, capacity=self.capacity // 2) if self.capacity == where else self


Vary = Callable[[Group, np.random.Generator], Group]
"""Something random done to a group each time it is used, for example masking.  The generator is a function of (seed,
epoch, sample id), so the result depends on neither devices nor workers."""


class Varied:
    """Groups that are judged: each varied once and for all."""

    def __init__(self, groups: Groups, vary: Vary, seed: int):
        self.groups, self.vary, self.seed = groups, vary, seed
        self.lengths, self.fingerprint = groups.lengths, groups.fingerprint

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.vary(self.groups[index], np.random.default_rng([self.seed, index]))


class Source(Protocol):
    """Where steps come from."""

    def draws(self, cursor: Cursor) -> Iterator[tuple[Draw, Callable[[], list[Group]]]]:
        """Steps from `cursor` on, without end; the groups are read only when asked for."""
        ...

    def steps(self, epochs: float) -> int | None:
        """Steps in so many epochs; None where that is not known."""
        ...


class Shuffled:
    """Steps drawn from a set with random access.

    Args:
        per_step: units of one optimizer step; a unit is a sample, or a pack of up to `pack_length` tokens.
        vary: done to each group whenever it is drawn.
        order: the samples of an epoch, perhaps some of them more than once; None takes each once.
        shares: what the weights of each sample are divided by, where it is drawn that often instead.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        seed: int,
        per_step: int,
        pack_length: int | None = None,
        shuffle: bool = True,
        vary: Vary | None = None,
        order: Callable[[int], NDArray[np.int64]] | None = None,
        shares: NDArray[np.float32] | None = None,
    ):
        self.groups, self.seed, self.per_step = groups, seed, per_step
        self.pack_length, self.shuffle, self.vary = pack_length, shuffle, vary
        self.order, self.shares = order, shares

    def units(self, epoch: int) -> Sequence[Sequence[int]]:
        """The epoch's units in order, each a list of sample ids."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.order is not None:
            order = self.order(epoch)
        else:
            order = rng.permutation(len(self.groups)) if self.shuffle else np.arange(len(self.groups))
        if self.pack_length is None:
            return order.reshape(-1, 1).tolist()
        return epoch_packs(self.groups.lengths, order, self.pack_length, rng if self.shuffle else None)

    def steps(self, epochs: float) -> int:
        whole, part = int(epochs), epochs - int(epochs)
        if self.pack_length is None:
            each = -(-len(self.units(0)) // self.per_step)
            return max(1, whole * each + round(part * each))
        counts = [-(-len(self.units(epoch)) // self.per_step) for epoch in range(whole + (part > 0))]
        return max(1, sum(counts[:whole]) + (round(part * counts[-1]) if part else 0))

    def draws(self, cursor: Cursor) -> Iterator[tuple[Draw, Callable[[], list[Group]]]]:
        epoch, consumed = cursor.epoch, cursor.consumed
        while True:
            seen = 0
            units = self.units(epoch)
            for start in range(0, len(units), self.per_step):
                samples = tuple(sample for unit in units[start : start + self.per_step] for sample in unit)
                first, seen = seen, seen + len(samples)
                if first < consumed:
                    if seen > consumed:
                        raise ConfigError(
                            f"sample {consumed} of epoch {epoch} lies inside a step",
                            where="resume",
                            fix="Resume with the same global batch size and packing",
                        )
                    continue
                last = start + self.per_step >= len(units)
                draw = Draw(samples, Cursor(epoch + 1, 0) if last else Cursor(epoch, seen))
                yield draw, lambda samples=samples, epoch=epoch: [self._read(sample, epoch) for sample in samples]
            epoch, consumed = epoch + 1, 0

    def _read(self, sample: int, epoch: int) -> Group:
        group = self.groups[sample]
        if self.shares is not None:
            group = group.scaled(1 / float(self.shares[sample]))
        return group if self.vary is None else self.vary(group, np.random.default_rng([self.seed, epoch, sample]))


class Streamed:
    """Steps drawn from a stream that can be opened at any position; it never ends.

    Args:
        vary: done to each group; seed: of what is random in that.
    """

    def __init__(
        self,
        stream: Callable[[int], Iterator[Group]],
        *,
        per_step: int,
        vary: Vary | None = None,
        seed: int = 0,
    ):
        self.stream, self.per_step = stream, per_step
        self.vary, self.seed = vary, seed

    def steps(self, epochs: float) -> None:
        return None

    def draws(self, cursor: Cursor) -> Iterator[tuple[Draw, Callable[[], list[Group]]]]:
        position = cursor.consumed
        groups = self.stream(position)
        while True:
            taken = [next(groups) for _ in range(self.per_step)]
            draw = Draw(tuple(range(position, position + self.per_step)), Cursor(0, position + self.per_step))
            position += self.per_step
            yield draw, lambda draw=draw, taken=taken: self._varied(draw.samples, taken)

    def _varied(self, samples: Sequence[int], groups: list[Group]) -> list[Group]:
        if self.vary is None:
            return groups
        rngs = (np.random.default_rng([self.seed, 0, sample]) for sample in samples)
        return [self.vary(group, rng) for group, rng in zip(groups, rngs, strict=True)]


def cut(draw: Draw, groups: Sequence[Group], share: Share) -> Step:
    """This rank's micro-batches of one step."""
    batches: list[Batch] = []
    # Each kind's micro-batches are a multiple of the world, so that all ranks run the same kinds in the same order.
    for kind in sorted({group.kind for group in groups}):
        places = [place for place, group in enumerate(groups) if group.kind == kind]
        lengths = [len(groups[place]) for place in places]
        bins = micro_batches(lengths, share.capacity, share.world, padded=share.padded)
        for members in bins[share.rank :: share.world]:
            mine = [places[member] for member in members]
            batches.append(collate([groups[place] for place in mine], [draw.samples[place] for place in mine], kind))
    return Step(draw, tuple(batches))


def load(source: Source, cursor: Cursor, share: Share, workers: int) -> Generator[Step]:
    """Steps from `cursor` on, prepared `2 x workers` ahead by threads; the result does not depend on `workers`."""
    drawn = source.draws(cursor)
    if workers == 0:
        for draw, read in drawn:
            yield cut(draw, read(), share)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="loader") as pool:
        ahead: deque[Future[Step]] = deque()
        try:
            while True:
                while len(ahead) < 2 * workers:
                    draw, read = next(drawn)
                    ahead.append(pool.submit(lambda draw=draw, read=read: cut(draw, read(), share)))
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def evaluation_batches(groups: Groups, share: Share) -> Iterator[Batch]:
    """Every group once, in micro-batches; every rank gets equally many, some perhaps empty."""
    starts = groups.starts if isinstance(groups, Kinds) else (0, len(groups))
    for kind, (start, end) in enumerate(pairwise(starts)):
        lengths = groups.lengths[start:end].tolist()
        if share.padded:
            bins = micro_batches(lengths, share.capacity, share.world, padded=True)
        else:
            bins = best_fit_decreasing(lengths, share.capacity)
            bins += [[] for _ in range(-len(bins) % share.world)]
        for members in bins[share.rank :: share.world]:
            indices = [start + member for member in members]
            yield collate([groups[index] for index in indices], indices, kind)
