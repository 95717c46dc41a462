"""Batches of answers through transformers' generate, for models that cannot run many sequences in one row.

Whoever comes while a batch runs waits for its end.

Legend: B answers, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from luthier.base.errors import DataError
from luthier.generate.choose import Chooser
from luthier.generate.form import Forms
from luthier.generate.request import Piece, Ticket, room_for
from luthier.generate.sampler import Answer
from luthier.model.causal import Model


@dataclass(eq=False)
class _Open:
    """One answer that waits or is under construction."""

    ticket: Ticket
    chooser: Chooser
    answer: Answer
    room: int
    """most tokens of the answer"""
    over: bool = False

    def take(self, logits_V: Tensor) -> int:
        """Choose the next token and hand out what it settles."""
        score = self.chooser.choose(logits_V)
        text, reason = self.answer.add(score.token, complete=self.chooser.complete, room=self.room)
        self.over = reason is not None or self.ticket.cancelled
        if not self.ticket.cancelled:
            told = (score,) if self.ticket.request.logprobs is not None else ()
            self.ticket.sink(Piece(text, (score.token,), told, reason))
        return score.token


class Padded:
    """A queue of requests of which each step answers some; arguments as of `Batching`."""

    running = 0

    def __init__(self, model: Model, *, stop_ids: Collection[int], slots: int = 8, max_length: int | None = None):
        self.model, self.stop_ids, self.slots = model, frozenset(stop_ids), slots
        before = 0 if model.before is None else model.before.tokens
        self.max_length = min(max_length or model.max_length, model.max_length - before)
        self.forms = Forms(model.tokenizer, model.vocabulary, self.stop_ids)
        self._queue: deque[_Open] = deque()

    @property
    def waiting(self) -> int:
        """Requests not yet answered."""
        return len(self._queue)

    def add(self, ticket: Ticket) -> None:
        """Take a request.  Raises DataError as `Batching.add`."""
        request, model = ticket.request, self.model
        room = min(room_for(request, self.max_length), request.sampling.max_new_tokens)
        if request.adapter is not None:
            raise DataError(f"no adapter of the name {request.adapter!r}", code="no_adapter")
        matcher = self.forms.matcher(request.form) if request.form is not None else None
        chooser = Chooser(request, model.vocabulary, model.device, matcher)
        answer = Answer(model.tokenizer, self.stop_ids, request.sampling.stop)
        self._queue.append(_Open(ticket, chooser, answer, room))

    def step(self) -> None:
        """Answer the requests that wait longest."""
        batch: list[_Open] = []
        while self._queue and len(batch) < self.slots:
            one = self._queue.popleft()
            if not one.ticket.cancelled:
                batch.append(one)
        if not batch:
            return
        try:
            self._answer(batch)
        except Exception as error:
            for one in batch:
                if not one.over:
                    one.ticket.sink(error)

    def fail(self, error: Exception) -> None:
        """End everything that waits with an error."""
        for one in self._queue:
            one.ticket.sink(error)
        self._queue.clear()

    def _answer(self, batch: Sequence[_Open]) -> None:
        model, network = self.model, self.model.base
        prompts = [one.ticket.request.prompt for one in batch]
        longest = max(map(len, prompts))
        ids_BL = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask_BL = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        # The model's own settings are not used: what is asked for is what happens.
        own: Any = network.generation_config
        network.generation_config = GenerationConfig()
        model.network.eval()
        most = max(one.room for one in batch)
        generate: Any = network.generate
        try:
            with torch.inference_mode(), model.arithmetic():
                if model.before is not None:
                    ids_BL, mask_BL = ids_BL.to(model.device), mask_BL.to(model.device)
                    model.before.go_on(network.get_decoder(), ids_BL, mask_BL, lambda h_BD: self._next(batch, h_BD))
                    return
                generate(
                    input_ids=ids_BL.to(model.device),
                    attention_mask=mask_BL.to(model.device),
                    generation_config=GenerationConfig(max_new_tokens=most, do_sample=False, pad_token_id=0),
                    logits_processor=LogitsProcessorList([_Choose(batch)]),
                    stopping_criteria=StoppingCriteriaList([_Until(batch)]),
                )
        finally:
            network.generation_config = own

    def _next(self, batch: Sequence[_Open], hidden_BD: Tensor) -> Tensor | None:
        """The next token of each answer; None when all are over."""
        logits_BV = self.model.logits(hidden_BD).float()
        ids = [0 if one.over else one.take(logits_BV[row]) for row, one in enumerate(batch)]
        return None if all(one.over for one in batch) else torch.tensor(ids, device=self.model.device)


class _Choose(LogitsProcessor):
    """Chooses each token in transformers' stead."""

    def __init__(self, batch: Sequence[_Open]):
        self._batch = batch

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        forced_BV = torch.full_like(scores, -torch.inf)
        for row, one in enumerate(self._batch):
            forced_BV[row, 0 if one.over else one.take(scores[row])] = 0
        return forced_BV


class _Until(StoppingCriteria):
    """Says which answers are over."""

    def __init__(self, batch: Sequence[_Open]):
        self._batch = batch

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor([one.over for one in self._batch], device=input_ids.device)
