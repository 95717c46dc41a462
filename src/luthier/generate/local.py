"""Text from a model in this process, through transformers' generate."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from luthier.base.errors import DataError
from luthier.generate.config import SamplingConfig
from luthier.generate.sampler import Answer, Completion
from luthier.model.causal import Model


class Local:
    """A Sampler on a loaded model.

    The model's own generation settings are not used, except for the tokens that end an answer: what is asked for
    is what happens.

    Args:
        stop_ids: tokens that end an answer besides the model's and the tokenizer's own.
        batch: prompts answered at once by `generate`.
    """

    def __init__(self, model: Model, *, stop_ids: Collection[int] = (), batch: int = 8):
        self.model, self.batch = model, batch
        own: Any = model.base.generation_config.eos_token_id
        ends: list[Any] = [*stop_ids, model.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        self.stop_ids = frozenset(token for token in ends if isinstance(token, int))

    def stream(self, prompt: Sequence[int], sampling: SamplingConfig) -> Iterator[str]:
        """Pieces of the answer as they come.  Leaving the loop early stops the model.

        Raises:
            DataError: the prompt is empty or fills the model's context.
        """
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        left = Event()

        def work() -> None:
            try:
                self._run([prompt], sampling, pieces, left)
            except BaseException as error:  # handed to the reader, who would otherwise wait for ever
                pieces.put(error)
            pieces.put(None)

        worker = Thread(target=work, daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                if piece:
                    yield piece
        finally:
            left.set()
            worker.join()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Completion]:
        """One answer to each prompt, in order.  Greedy answers do not depend on which prompts share a batch.

        Raises:
            DataError: a prompt is empty or fills the model's context.
        """
        # Prompts of similar length share a batch, so that little is padded.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch):
            indices = order[start : start + self.batch]
            completions = self._run([prompts[index] for index in indices], sampling, SimpleQueue(), Event())
            answers.update(zip(indices, completions, strict=True))
        return [answers[index] for index in range(len(prompts))]

    def _run(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, pieces: SimpleQueue[Any], left: Event
    ) -> list[Completion]:
        tokenizer, device = self.model.tokenizer, self.model.device
        longest = max(len(prompt) for prompt in prompts)
        room = self.model.max_length - longest
        if room < 1 or not all(prompts):
            raise DataError(
                f"a prompt of {longest} tokens leaves no room for an answer, the model holds {self.model.max_length}"
                if room < 1
                else "a prompt is empty",
                code="bad_prompt",
                fix="Shorten it" if room < 1 else None,
            )
        pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else min(self.stop_ids, default=0)
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        answers = [Answer(tokenizer, self.stop_ids, sampling.stop) for _ in prompts]
        network: Any = self.model.base
        with self._ready(sampling):
            network.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=_settings(sampling, min(room, sampling.max_new_tokens), self.stop_ids, pad),
                stopping_criteria=StoppingCriteriaList([_Feed(answers, pieces, left)]),
            )
        completions: list[Completion] = []
        for answer in answers:
            reason = "stop" if answer.finished else "length"
            pieces.put("" if answer.finished else answer.finish())
            completions.append(answer.completion(reason))
        return completions

    @contextmanager
    def _ready(self, sampling: SamplingConfig) -> Generator[None]:
        """The model as generation needs it, and afterwards as it was: a training run may own it."""
        model = self.model
        was_training, own = model.network.training, model.base.generation_config
        model.network.eval()
        model.base.generation_config = GenerationConfig()
        try:
            with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), model.arithmetic():
                torch.manual_seed(sampling.seed)
                yield
        finally:
            model.base.generation_config = own
            model.network.train(was_training)


class _Feed(StoppingCriteria):
    """Hands each new token to its answer, and says which answers have finished."""

    def __init__(self, answers: list[Answer], pieces: SimpleQueue[Any], left: Event):
        self.answers, self.pieces, self.left = answers, pieces, left

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        for answer, token in zip(self.answers, input_ids[:, -1].tolist(), strict=True):
            self.pieces.put(answer.feed(token))
        finished = [answer.finished or self.left.is_set() for answer in self.answers]
        return torch.tensor(finished, device=input_ids.device)


def _settings(sampling: SamplingConfig, room: int, stop_ids: Collection[int], pad: int) -> GenerationConfig:
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        chosen = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    return GenerationConfig(
        max_new_tokens=room,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad,
        **chosen,
    )
