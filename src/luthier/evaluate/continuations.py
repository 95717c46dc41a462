"""How likely a model finds given continuations of prompts; what several of them share is computed once.

Legend: T tokens computed together, P tokens of the shared beginning, R positions whose scores are read, V vocabulary,
D width.

Questions of one data set mostly begin alike (instructions, worked examples), and the options of one question share
all of it.  The shared beginning goes through the model once and stays as keys and values.  The rest of many questions,
each with its options as branches, is one row behind it: a mask lets every token see the shared beginning, its own
question and its own branch, and positions count along the branch.  Nothing is padded and nothing computed twice.

A model whose attention cannot be given such a mask reads every option behind its whole prompt, packed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.model.causal import Model
from luthier.model.logprobs import chunk_rows

Ids = tuple[int, ...]

_WORTH_SHARING = 32
"""Tokens that a shared beginning must have to be kept."""
_MOST_IN_A_TREE = 1024
"""Tokens of one masked row; the mask grows with their square."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, not empty, and its possible continuations, none empty."""

    prompt: Ids
    options: tuple[Ids, ...]
    cut: bool = False
    """whether the prompt has lost its beginning"""


@dataclass(frozen=True, slots=True)
class Found:
    """How each continuation fares."""

    logprobs: tuple[float, ...]
    """sum over its tokens, in nats"""
    greedy: tuple[bool, ...]
    """whether each of its tokens is the likeliest one in its place"""
    cut: bool
    """whether the prompt did not fit with its longest continuation, and lost its beginning"""


class Scorer:
    """Scores continuations on one model.

    Args:
        batch_tokens: most tokens computed at once, or one question if that is longer.
        share: compute what is shared once; off, every option is read behind its whole prompt.
    """

    def __init__(self, model: Model, *, batch_tokens: int = 8192, share: bool = True):
        self.model, self.batch_tokens = model, batch_tokens
        self._share = share and model.packed
        self._window = _window(model)
        self._kept: tuple[Ids, DynamicCache] | None = None

    @torch.no_grad()
    def score(self, asked: Sequence[Asked]) -> list[Found]:
        """The likelihood of every continuation, in the order asked."""
        self.model.eval_mode()
        fitted = [_fit(one, self.model.max_length) for one in asked]
        # A cut prompt does not begin like the others.
        groups = [[n for n, one in enumerate(fitted) if one.cut == cut] for cut in (False, True)]
        answers: dict[int, Found] = {}
        for numbers in groups:
            if numbers:
                found = self._score_alike([fitted[number] for number in numbers])
                answers.update(zip(numbers, found, strict=True))
        return [answers[number] for number in range(len(asked))]

    def _score_alike(self, asked: list[Asked]) -> list[Found]:
        shared = _shared_beginning(asked) if self._share else 0
        single = all(len(option) == 1 for one in asked for option in one.options)
        longest = max(len(one.prompt) + max(map(len, one.options)) for one in asked)
        masks = self._share and (self._window is None or longest <= self._window)
        # Masks cost: what is shared must be long, and at least half of what is not.
        rest = sum(len(one.prompt) - shared for one in asked)
        worth = shared >= _WORTH_SHARING and 2 * shared * len(asked) >= rest
        if single and not (masks and worth):
            return self._last_tokens(asked)
        return self._trees(asked, shared if worth else 0) if masks else self._whole(asked)

    def _last_tokens(self, asked: list[Asked]) -> list[Found]:
        """Options of one token each: all of them are read behind their prompt at once."""
        found: dict[int, Found] = {}
        sizes = [len(one.prompt) for one in asked]
        for numbers in batches(sizes, self.batch_tokens):
            hidden_TD = self.model.hidden(packed([asked[n].prompt for n in numbers]).to(self.model.device))
            ends = np.cumsum([sizes[n] for n in numbers]) - 1
            places = [(int(end), asked[n].options) for n, end in zip(numbers, ends, strict=True)]
            reads = [[(end, option[0])] for end, options in places for option in options]
            found.update(zip(numbers, self._read(hidden_TD, reads, [asked[n] for n in numbers]), strict=True))
        return [found[number] for number in range(len(asked))]

    def _whole(self, asked: list[Asked]) -> list[Found]:
        """Every option behind its whole prompt."""
        pairs = [(number, option) for number, one in enumerate(asked) for option in one.options]
        sequences = [asked[number].prompt + option[:-1] for number, option in pairs]
        one_by_one: dict[int, Found] = {}
        for places in batches([len(sequence) for sequence in sequences], self.batch_tokens):
            hidden_TD = self.model.hidden(packed([sequences[p] for p in places]).to(self.model.device))
            reads: list[list[tuple[int, int]]] = []
            start = 0
            for place in places:
                number, option = pairs[place]
                first = start + len(asked[number].prompt) - 1
                reads.append([(first + step, token) for step, token in enumerate(option)])
                start += len(sequences[place])
            alone = [replace(asked[pairs[place][0]], options=(pairs[place][1],)) for place in places]
            one_by_one.update(zip(places, self._read(hidden_TD, reads, alone), strict=True))
        parts = iter(one_by_one[place] for place in range(len(pairs)))
        return [_joined([next(parts) for _ in one.options]) for one in asked]

    def _trees(self, asked: list[Asked], shared: int) -> list[Found]:
        """Questions as trees, many in one row behind the shared beginning."""
        cache = self._beginning(asked[0].prompt[:shared]) if shared else None
        most = min(self.batch_tokens, _MOST_IN_A_TREE)
        sizes = [len(one.prompt) - shared + sum(len(option) - 1 for option in one.options) for one in asked]
        found: dict[int, Found] = {}
        for numbers in batches(sizes, most):
            row = _Row.of([asked[n] for n in numbers], shared)
            hidden_TD = self._masked(row, shared, cache)
            found.update(zip(numbers, self._read(hidden_TD, row.reads, [asked[n] for n in numbers]), strict=True))
        return [found[number] for number in range(len(asked))]

    def _beginning(self, ids: Ids) -> DynamicCache:
        """Keys and values of the shared beginning; the last one is kept."""
        if self._kept is None or self._kept[0] != ids:
            cache = DynamicCache()
            ids_1P = torch.tensor([ids], device=self.model.device)
            decoder: Any = self.model.base.get_decoder()
            with self.model.arithmetic():
                decoder(input_ids=ids_1P, use_cache=True, **_with(decoder, cache))
            self._kept = ids, cache
        return self._kept[1]

    def _masked(self, row: _Row, shared: int, cache: DynamicCache | None) -> Tensor:
        device = self.model.device
        decoder: Any = self.model.base.get_decoder()
        with self.model.arithmetic():
            hidden_TD: Tensor = decoder(
                input_ids=torch.tensor([row.ids], device=device),
                position_ids=torch.tensor([row.positions], device=device),
                attention_mask=row.mask(shared).to(device)[None, None],
                use_cache=cache is not None,
                **_with(decoder, cache),
            )[0][0]
        if cache is not None:
            cache.crop(-len(row.ids))
        return hidden_TD

    def _read(self, hidden_TD: Tensor, reads: list[list[tuple[int, int]]], asked: Sequence[Asked]) -> list[Found]:
        """The continuations of `asked`, whose tokens are looked up at (position, token) in `reads`, in order."""
        positions = sorted({position for read in reads for position, _ in read})
        row_of = {position: row for row, position in enumerate(positions)}
        rows_N = torch.tensor([row_of[position] for read in reads for position, _ in read])
        tokens_N = torch.tensor([token for read in reads for _, token in read])
        logprobs_N = torch.zeros(len(rows_N), dtype=torch.float64)
        greedy_N = torch.zeros(len(rows_N), dtype=torch.bool)
        step = chunk_rows(self.model.vocabulary, self.model.device)
        hidden_RD = hidden_TD[torch.tensor(positions, device=hidden_TD.device)]
        for start in range(0, len(positions), step):
            logits_RV = self.model.logits(hidden_RD[start : start + step]).float()
            mine = (rows_N >= start) & (rows_N < start + step)
            rows, tokens = (rows_N[mine] - start).to(logits_RV.device), tokens_N[mine].to(logits_RV.device)
            chosen = logits_RV[rows, tokens] - logits_RV.logsumexp(-1)[rows]
            logprobs_N[mine] = chosen.double().cpu()
            greedy_N[mine] = (logits_RV.argmax(-1)[rows] == tokens).cpu()
        parts = zip(
            logprobs_N.split([len(read) for read in reads]), greedy_N.split([len(read) for read in reads]), strict=True
        )
        answers: list[Found] = []
        for one in asked:
            options = [next(parts) for _ in one.options]
            sums = tuple(float(logprobs.sum()) for logprobs, _ in options)
            answers.append(Found(sums, tuple(bool(greedy.all()) for _, greedy in options), one.cut))
        return answers


@dataclass(frozen=True, slots=True)
class _Row:
    """Questions with their branches laid end to end."""

    ids: list[int]
    positions: list[int]
    branches: list[tuple[int, int, int, int]]
    """(start of the question, end of its prompt, start, end) of what may be seen from each stretch of tokens"""
    reads: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, asked: Sequence[Asked], shared: int) -> _Row:
        row = cls([], [], [], [])
        for one in asked:
            start = len(row.ids)
            row.ids.extend(one.prompt[shared:])
            end = len(row.ids)
            row.positions.extend(range(shared, len(one.prompt)))
            row.branches.append((start, start, start, end))
            for option in one.options:
                first = len(row.ids)
                row.ids.extend(option[:-1])
                row.positions.extend(range(len(one.prompt), len(one.prompt) + len(option) - 1))
                row.branches.append((start, end, first, len(row.ids)))
                row.reads.append([(end - 1 if n == 0 else first + n - 1, token) for n, token in enumerate(option)])
        return row

    def mask(self, shared: int) -> Tensor:
        """bool [T, P + T]: what each token sees."""
        size = len(self.ids)
        sees = torch.zeros(size, shared + size, dtype=torch.bool)
        sees[:, :shared] = True
        for start, end, first, last in self.branches:
            sees[first:last, shared + start : shared + end] = True
            length = last - first
            sees[first:last, shared + first : shared + last] = torch.ones(length, length, dtype=torch.bool).tril()
        return sees


def _fit(asked: Asked, most: int) -> Asked:
    """Cut the beginning of a prompt that does not fit; of an option that alone does not fit, its end."""
    options = tuple(option[: most - 1] for option in asked.options)
    room = most - max(map(len, options))
    prompt = asked.prompt[max(0, len(asked.prompt) - room) :]
    return Asked(prompt, options, cut=len(prompt) < len(asked.prompt))


def _shared_beginning(asked: Sequence[Asked]) -> int:
    """Tokens that all prompts begin with, each prompt keeping one of its own; 0 for a single question."""
    if len(asked) < 2:
        return 0
    low, high = min(one.prompt for one in asked), max(one.prompt for one in asked)
    most = min(len(one.prompt) for one in asked) - 1
    return next((n for n, (left, right) in enumerate(zip(low, high, strict=False)) if left != right or n == most), most)


def batches(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers by size, as many at once as `most` tokens hold."""
    batch: list[int] = []
    total = 0
    for number in sorted(range(len(sizes)), key=lambda n: sizes[n]):
        if batch and total + sizes[number] > most:
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += sizes[number]
    if batch:
        yield batch


def packed(sequences: Sequence[Ids]) -> Batch:
    """Sequences as a batch in which nothing is trained."""
    groups = [Group((Tokens(np.array(ids, np.int32), np.zeros(len(ids), np.float32)),)) for ids in sequences]
    return collate(groups, range(len(groups)))


def _joined(parts: Sequence[Found]) -> Found:
    return Found(
        tuple(part.logprobs[0] for part in parts), tuple(part.greedy[0] for part in parts), any(p.cut for p in parts)
    )


def _with(decoder: Any, cache: DynamicCache | None) -> dict[str, Any]:
    """The cache under the name that the decoder has for it, which newer versions of transformers changed."""
    known = inspect.signature(decoder.forward).parameters
    return {} if cache is None else {"cache" if "cache" in known else "past_key_values": cache}


def _window(model: Model) -> int | None:
    """Tokens that a layer sees at least."""
    window: Any = getattr(model.base.config.get_text_config(), "sliding_window", None)
    return window if isinstance(window, int) else None
