"""Local models for the verbs of the workshop: losses, embeddings, and choices among given answers.

Legend: T packed tokens, L tokens of a text, D width, N rows, K options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Message, Text, Where
from luthier.prepare.models import ModelVerbConfig

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch, Tokens
    from luthier.data.render import Renderer
    from luthier.model.causal import Model

Floats = NDArray[np.float32]
_NOWHERE = Where("", 0)


class Judge:
    """A model that is loaded when it is first asked, and works on rows of like length together."""

    def __init__(self, config: ModelVerbConfig):
        self._config = config
        self._open = cache(self._load)

    def loss(self, prompts: Sequence[str], answers: Sequence[str]) -> Floats:
        """Mean loss of each answer's tokens behind its prompt, in nats, float32 [N].

        A prompt is a user's turn in the model's chat template; "" is none, and then the first token, which nothing
        predicts, does not count.  What the model cannot hold is cut: the answer's end, then the prompt's beginning.
        NaN for an answer without a token that counts.
        """
        totals, counts = self._likelihoods(prompts, answers)
        with np.errstate(invalid="ignore"):
            return (-totals / np.where(counts > 0, counts, np.nan)).astype(np.float32)

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Floats:
        """Log-probability of each option as the answer, among these options, float32 [N, K]."""
        pairs = [(prompt, option) for prompt in prompts for option in options]
        totals, _ = self._likelihoods([prompt for prompt, _ in pairs], [option for _, option in pairs])
        scores_NK = totals.reshape(len(prompts), len(options))
        scores_NK = scores_NK - scores_NK.max(axis=1, keepdims=True)
        return (scores_NK - np.log(np.exp(scores_NK).sum(axis=1, keepdims=True))).astype(np.float32)

    def embed(self, texts: Sequence[str]) -> Floats:
        """Mean of the last hidden states over each text's tokens, float32 [N, D]; zeros for an empty text."""
        from luthier.data.batch import Group
        from luthier.generate.passes import each, rows
        from luthier.model.heads import pooled

        model, renderer = self._open()
        sequences = [_cut(_plain(renderer, text), model.max_length) for text in texts]

        def run(batch: Batch) -> Iterator[Tensor]:
            return rows(pooled(model.hidden(batch).float(), batch.lengths, batch.offsets, "mean"))

        there = [number for number, tokens in enumerate(sequences) if len(tokens)]
        found = each(model, [Group((sequences[number],)) for number in there], run, self._config.batch_tokens)
        made = dict(zip(there, (vector_D.numpy() for vector_D in found), strict=True))
        width = len(next(iter(made.values()), np.zeros(1)))
        return np.stack([made.get(number, np.zeros(width, np.float32)) for number in range(len(texts))])

    def _likelihoods(self, prompts: Sequence[str], answers: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Sum of the log-probabilities of each answer's tokens, and how many count; float64 and int64 [N]."""
        from luthier.data.batch import Group
        from luthier.generate.passes import each

        model, renderer = self._open()
        sequences = [
            _sequence(renderer, prompt, answer, model.max_length)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

        def run(batch: Batch) -> Iterator[float]:
            logprobs_T = model.logprobs(batch)[0].double().cpu()
            return (float(part_L.sum()) for part_L in logprobs_T.split(list(batch.lengths)))

        there = [number for number, tokens in enumerate(sequences) if len(tokens)]
        totals = np.zeros(len(sequences))
        totals[there] = each(model, [Group((sequences[number],)) for number in there], run, self._config.batch_tokens)
        return totals, np.array([int((tokens.weights > 0).sum()) for tokens in sequences], np.int64)

    def _load(self) -> tuple[Model, Renderer]:
        from luthier.data.render import Renderer
        from luthier.model import methods
        from luthier.model.device import device_of
        from luthier.model.load import load_model, load_tokenizer
        from luthier.run.result import find

        usable = find(self._config.model)
        tokenizer = load_tokenizer(usable.tokenizer)
        renderer = Renderer(tokenizer, template=usable.model.template, template_args=usable.model.template_args)
        model = load_model(usable.model, device_of(self._config.device), tokenizer=tokenizer, trained=False)
        methods.attach(model, usable.model.adapters)
        model.eval_mode()
        return model, renderer


def _plain(renderer: Renderer, text: str) -> Tokens:
    """A text without its end; it begins with the beginning-of-sequence token where the tokenizer adds one."""
    from luthier.data.batch import Tokens

    whole = renderer.text(Text(text, _NOWHERE))
    return Tokens(whole.ids[:-1], whole.weights[:-1])


def _cut(tokens: Tokens, longest: int) -> Tokens:
    from luthier.data.batch import Tokens

    return Tokens(tokens.ids[:longest], tokens.weights[:longest])


def _sequence(renderer: Renderer, prompt: str, answer: str, longest: int) -> Tokens:
    """Prompt and answer as one sequence in which the answer counts."""
    from luthier.data.batch import Tokens

    plain = _plain(renderer, answer)
    if not prompt:
        return _cut(plain, longest)
    bos = renderer.tokenizer.bos_token_id
    ids = plain.ids[1:] if len(plain.ids) and bos is not None and int(plain.ids[0]) == bos else plain.ids
    ids = ids[: longest - 1]
    asked = np.array(renderer.prompt([Message("user", prompt)]), np.int32)
    asked = asked[max(0, len(asked) + len(ids) - longest) :]
    weights = np.concatenate([np.zeros(len(asked), np.float32), np.ones(len(ids), np.float32)])
    weights[:1] = 0
    return Tokens(np.concatenate([asked, ids]), weights)


def loss(config: ModelVerbConfig) -> Callable[[Sequence[str], Sequence[str]], Floats]:
    """See `Judge.loss`."""
    return Judge(config).loss


def embed(config: ModelVerbConfig) -> Callable[[Sequence[str]], Floats]:
    """See `Judge.embed`."""
    return Judge(config).embed


def choose(config: ModelVerbConfig) -> Callable[[Sequence[str], Sequence[str]], Floats]:
    """See `Judge.choose`."""
    return Judge(config).choose
