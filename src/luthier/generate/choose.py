"""The choice of the next token, for one answer.

A choice depends on the request and the scores alone: never on which other requests share the batch.

Legend: V vocabulary.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from luthier.generate.form import Matcher
from luthier.generate.request import Request, Score


class Chooser:
    """Chooses the tokens of one answer, in order."""

    def __init__(self, request: Request, vocabulary: int, device: torch.device, matcher: Matcher | None):
        self.sampling, self.matcher = request.sampling, matcher
        self._logprobs, self._random = request.logprobs, random.Random(request.sampling.seed)
        sampling = request.sampling
        self._penalised = bool(
            sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1
        )
        changed = self._penalised or matcher is not None or request.bias
        self.plain = sampling.temperature == 0 and not changed and request.logprobs is None
        """Whether the choice is the likeliest token and nothing else is wanted of it."""
        self._bias_V: Tensor | None = None
        if request.bias:
            self._bias_V = torch.zeros(vocabulary, device=device)
            ids, values = zip(*request.bias, strict=True)
            self._bias_V[torch.tensor(ids, device=device)] = torch.tensor(values, device=device)
        if self._penalised:
            self._seen_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen_V[torch.tensor(request.prompt, device=device)] = True
            self._count_V = torch.zeros(vocabulary, device=device)

    @property
    def complete(self) -> bool:
        """Whether the answer has its form and nothing may follow."""
        return self.matcher is not None and self.matcher.finished

    def choose(self, logits_V: Tensor) -> Score:
        """The next token, and how likely it was."""
        logits_V = logits_V.float()
        scores_V = logits_V if self._bias_V is None else logits_V + self._bias_V
        if self._penalised:
            scores_V = self._penalise(scores_V)
        if self.matcher is not None:
            scores_V = scores_V.masked_fill(~self.matcher.allowed_V().to(scores_V.device), -torch.inf)
        token = int(scores_V.argmax()) if self.sampling.temperature == 0 else self._draw(scores_V)
        if self.matcher is not None:
            self.matcher.take(token)
        if self._penalised:
            self._seen_V[token] = True
            self._count_V[token] += 1
        return self._score(logits_V, token)

    def _score(self, logits_V: Tensor, token: int) -> Score:
        if self._logprobs is None:
            return Score(token, 0.0)
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(min(self._logprobs, len(logprobs_V)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Score(token, float(logprobs_V[token]), tuple(pairs))

    def _penalise(self, logits_V: Tensor) -> Tensor:
        sampling = self.sampling
        if sampling.repetition_penalty != 1:  # CTRL, Keskar et al. 2019, as transformers computes it
            factor = sampling.repetition_penalty
            scaled_V = torch.where(logits_V < 0, logits_V * factor, logits_V / factor)
            logits_V = torch.where(self._seen_V, scaled_V, logits_V)
        return (
            logits_V
            - sampling.frequency_penalty * self._count_V
            - sampling.presence_penalty * (self._count_V > 0).float()
        )

    def _draw(self, scores_V: Tensor) -> int:
        sampling = self.sampling
        scores_V = scores_V / sampling.temperature
        if sampling.top_k:
            least = scores_V.topk(min(sampling.top_k, len(scores_V))).values[-1]
            scores_V = scores_V.masked_fill(scores_V < least, -torch.inf)
        if sampling.top_p < 1:
            probs_V, order_V = scores_V.softmax(-1).sort(descending=True, stable=True)
            out = order_V[probs_V.cumsum(-1) - probs_V >= sampling.top_p]
            scores_V = scores_V.index_fill(0, out, -torch.inf)
        probs_V = scores_V.softmax(-1, dtype=torch.float64)
        if sampling.min_p > 0:
            probs_V = probs_V.masked_fill(probs_V < sampling.min_p * probs_V.max(), 0.0)
        # One number a token, and tokens in the order of their ids: rounding of the scores, which depends on the batch,
        # moves the borders a little and never the order.
        reached_V = probs_V.cumsum(-1)
        aim = torch.full((1,), self._random.random(), dtype=torch.float64, device=reached_V.device) * reached_V[-1]
        return min(int(torch.searchsorted(reached_V, aim, right=True)), len(probs_V) - 1)
