"""Continuous batching: answers of any age share each step of the model; requests come and go between steps.

Every answer has a lane for its keys and values.  A step continues each running answer by one token and takes pieces of
the prompts that are still to be read.  What a finished answer left in its lane serves the next prompt that begins
alike.

Legend: T tokens of a step, R rows that are scored, V vocabulary, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.base.errors import DataError, ModelError
from luthier.generate.choose import Chooser
from luthier.generate.form import Forms
from luthier.generate.request import Piece, Score, Ticket, room_for
from luthier.generate.sampler import Answer
from luthier.model.attention import step_inputs
from luthier.model.causal import Model
from luthier.model.lanes import Lanes, Part, Step, token_bytes
from luthier.model.several import Adapter, Several
from luthier.model.stepping import Stepper

_SMALLEST_LANE = 256
_AHEAD = 128
"""Tokens of an answer that a lane has room for from the start; more are made room for when they come."""


@dataclass(eq=False)
class _Running:
    """One answer under construction."""

    ticket: Ticket
    chooser: Chooser
    answer: Answer
    adapter: Adapter | None
    room: int
    """most tokens of the answer"""
    lane: int = -1
    turn: int = 0
    """later ones were given their lane later"""
    read: int = 0
    """tokens whose keys and values are in the lane"""
    cached: int = 0
    ids: list[int] = field(default_factory=list[int])
    """prompt and answer"""

    @property
    def need(self) -> int:
        """Tokens that its lane should hold."""
        return min(len(self.ticket.request.prompt) + self.room, len(self.ids) + _AHEAD)

    @property
    def waiting(self) -> int:
        """Tokens that are known and not yet in the lane."""
        return len(self.ids) - self.read


@dataclass
class _Left:
    """What a lane holds that nobody uses now."""

    ids: list[int] = field(default_factory=list[int])
    adapter: Adapter | None = None


class Batching:
    """The answers under way on one model; not for several threads.

    Args:
        stop_ids: tokens that end an answer.
        slots: answers at a time.
        max_length: most tokens of prompt and answer; None takes the model's context.
        cache_tokens: tokens that all lanes hold together; None takes what fits in a quarter of the free memory.
        chunk: tokens of prompts that are read in a step.
    """

    def __init__(
        self,
        model: Model,
        *,
        stop_ids: Collection[int],
        slots: int = 16,
        max_length: int | None = None,
        cache_tokens: int | None = None,
        chunk: int = 512,
    ):
        if not model.packed:
            raise ModelError("this model cannot run several sequences in one row", code="not_packed")
        self.model, self.stop_ids, self.slots = model, frozenset(stop_ids), slots
        longest = min(max_length or model.max_length, model.max_length)
        self.cache_tokens = min(cache_tokens or _tokens_that_fit(model), slots * longest)
        self.max_length = min(longest, self.cache_tokens)
        self.adapters: dict[str, Adapter] = {}
        self.several = Several(model)
        decoder = model.base.get_decoder()
        self._stepper = Stepper(decoder) if Stepper.suits(decoder, model.dtype) else None
        self.forms = Forms(model.tokenizer, model.vocabulary, self.stop_ids)
        self._chunk = chunk
        self._lanes = Lanes(model.device, model.dtype)
        self._left: list[_Left] = []
        self._queue: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._turns = 0

    @property
    def running(self) -> int:
        """Answers that have a lane."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a lane."""
        return len(self._queue)

    @property
    def lane_tokens(self) -> int:
        """Tokens that the lanes have memory for."""
        return self._lanes.rows * self._lanes.capacity

    def add(self, ticket: Ticket) -> None:
        """Take a request; its first piece comes with a later `step`.

        Raises:
            DataError: `bad_prompt` when it is empty, `context_length_exceeded` when it leaves no room for an answer,
                `bad_form`, `no_adapter`.
        """
        request = ticket.request
        room = room_for(request, self.max_length)
        if request.adapter is not None and request.adapter not in self.adapters:
            raise DataError(f"no adapter of the name {request.adapter!r}", code="no_adapter")
        matcher = self.forms.matcher(request.form) if request.form is not None else None
        model, sampling = self.model, request.sampling
        running = _Running(
            ticket,
            Chooser(request, model.vocabulary, model.device, matcher),
            Answer(model.tokenizer, self.stop_ids, sampling.stop),
            self.adapters[request.adapter] if request.adapter is not None else None,
            min(room, sampling.max_new_tokens),
            ids=list(request.prompt),
        )
        self._queue.append(running)

    @torch.inference_mode()
    def step(self) -> None:
        """Run the model once for everything under way, and hand out what came of it."""
        for running in [running for running in self._running if running.ticket.cancelled]:
            self._leave(running)
        self._lengthen()
        self._admit()
        row = self._row()
        if not row:
            return
        hidden_TD = self._run(row)
        last = [n for n, (running, part) in enumerate(row) if part.start + part.length == len(running.ids)]
        ends = torch.tensor([part.length for _, part in row]).cumsum(0) - 1
        for running, part in row:
            running.read += part.length
        if last:
            logits_RV = self.model.logits(hidden_TD[ends[last].to(hidden_TD.device)])
            self._choose([row[n][0] for n in last], logits_RV)

    def fail(self, error: Exception) -> None:
        """End everything under way with an error, and forget what the lanes hold."""
        for running in (*self._running, *self._queue):
            running.ticket.sink(error)
        self._running.clear()
        self._queue.clear()
        self._lanes = Lanes(self.model.device, self.model.dtype)
        self._left = []

    def forget(self, name: str) -> None:
        """Take an adapter out; answers under way keep it to their end."""
        self.adapters.pop(name, None)

    def _row(self) -> list[tuple[_Running, Part]]:
        """What this step computes: first the answers that go on, by lane, then pieces of prompts."""
        self._running.sort(key=lambda running: running.lane)
        row = [(running, Part(running.lane, running.read, 1)) for running in self._running if running.waiting == 1]
        left = self._chunk
        for running in self._running:
            if running.waiting > 1 and left:
                length = min(running.waiting, left)
                left -= length
                row.append((running, Part(running.lane, running.read, length)))
        return row

    def _run(self, row: Sequence[tuple[_Running, Part]]) -> Tensor:
        """hidden_TD of a row."""
        model = self.model
        if model.network.training:  # asking thousands of modules to stay as they are is a tenth of a small step
            model.network.eval()
        ids = [token for running, part in row for token in running.ids[part.start : part.start + part.length]]
        continued = sum(running.waiting == 1 for running, _ in row)
        parts = [part for _, part in row]
        step = Step(self._lanes, parts[:continued], parts[continued:])
        if self._stepper is not None and all(running.adapter is None for running, _ in row):
            return self._stepper(torch.tensor(ids).to(model.device), step)
        decoder: Any = model.base.get_decoder()
        users = [running.adapter for running, part in row for _ in range(part.length)]
        with self.several.used(users), model.arithmetic():
            return decoder(**step_inputs(torch.tensor(ids).to(model.device), step))[0][0]

    def _choose(self, runnings: Sequence[_Running], logits_RV: Tensor) -> None:
        likeliest = logits_RV.argmax(-1).tolist()
        for running, logits_V, token in zip(runnings, logits_RV, likeliest, strict=True):
            try:
                chooser = running.chooser
                self._take(running, Score(token, 0.0) if chooser.plain else chooser.choose(logits_V))
            except Exception as error:  # what is wrong with one request ends that one
                running.ticket.sink(error)
                self._leave(running)

    def _take(self, running: _Running, score: Score) -> None:
        """Add a token to an answer, and hand out what it settles."""
        request, answer = running.ticket.request, running.answer
        first = len(running.ids) == len(request.prompt)
        running.ids.append(score.token)
        text, reason = answer.add(score.token, complete=running.chooser.complete, room=running.room)
        scores = (score,) if request.logprobs is not None else ()
        if not running.ticket.cancelled:
            running.ticket.sink(Piece(text, (score.token,), scores, reason, running.cached if first else 0))
        if reason:
            self._leave(running)

    def _leave(self, running: _Running) -> None:
        self._running.remove(running)
        self._left[running.lane] = _Left(running.ids[: running.read], running.adapter)

    def _admit(self) -> None:
        """Give lanes to those who wait, in order, as long as there are some."""
        while self._queue:
            running = self._queue[0]
            if running.ticket.cancelled:
                self._queue.popleft()
                continue
            if running.need > self._lanes.capacity or len(self._running) >= self._lanes.rows:
                rows, capacity = self._shape([running, *self._running])
                if len(self._running) >= rows:
                    return
                self._reshape(rows, capacity)
            self._queue.popleft()
            free = self._free()
            source, alike = self._alike(running)
            running.lane = source if source in free else free[0]
            if alike and running.lane != source:
                self._lanes.copy(source, running.lane, alike)
            running.read = running.cached = alike
            running.turn = self._turns = self._turns + 1
            self._left[running.lane] = _Left()
            self._running.append(running)

    def _lengthen(self) -> None:
        """Make room for the tokens of this step; whoever came last waits again if there is none."""
        if all(len(running.ids) <= self._lanes.capacity for running in self._running):
            return
        self._running.sort(key=lambda running: running.turn)
        rows, capacity = self._shape(self._running)
        while len(self._running) > rows:
            last = self._running.pop()
            last.read = 0
            self._queue.appendleft(last)
            rows, capacity = self._shape(self._running)
        self._reshape(rows, capacity)

    def _shape(self, runnings: Sequence[_Running]) -> tuple[int, int]:
        """How many lanes there can be, of which length, for these to fit."""
        longest = max(running.need for running in runnings)
        capacity = min(max(_SMALLEST_LANE, 1 << (longest - 1).bit_length()), self.max_length)
        return min(self.slots, self.cache_tokens // capacity), capacity

    def _reshape(self, rows: int, capacity: int) -> None:
        """Change the lanes; answers in lanes that go move to others."""
        for running in self._running:
            if running.lane >= rows:
                lane = next(lane for lane in self._free() if lane < rows)
                self._lanes.copy(running.lane, lane, running.read)
                running.lane, self._left[lane] = lane, _Left()
        self._lanes.resize(rows, capacity)
        kept = self._left[:rows] + [_Left() for _ in range(rows - len(self._left))]
        self._left = [_Left(left.ids[:capacity], left.adapter) for left in kept]

    def _free(self) -> list[int]:
        taken = {running.lane for running in self._running}
        return [lane for lane in range(self._lanes.rows) if lane not in taken]

    def _alike(self, running: _Running) -> tuple[int, int]:
        """The lane that begins most like a prompt, and how many tokens are alike; the last token is always computed."""
        prompt, best = running.ids[:-1], (0, 0)
        lanes = [(lane, left.ids, left.adapter) for lane, left in enumerate(self._left)]
        lanes += [(other.lane, other.ids[: other.read], other.adapter) for other in self._running]
        for lane, ids, adapter in lanes:
            if adapter is running.adapter and (alike := _common(prompt, ids)) > best[1]:
                best = lane, alike
        return best


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that two sequences have in common from their start."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(n for n in range(shorter) if left[n] != right[n])


def _tokens_that_fit(model: Model) -> int:
    """Tokens of all lanes that a quarter of the memory that is free now holds."""
    config: Any = model.base.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
    return max(_SMALLEST_LANE, free // 4 // token_bytes(config.num_hidden_layers, heads, width, model.dtype))
