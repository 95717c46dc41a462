"""The model that is evaluated, and how questions become its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError
from luthier.base.records import Chat, Json, Message, Text, Where
from luthier.data.render import Renderer
from luthier.evaluate.continuations import Asked, Found, Ids, Scorer
from luthier.evaluate.specialist import cosines
from luthier.evaluate.task import Item
from luthier.generate.config import SamplingConfig
from luthier.generate.embed import embed
from luthier.generate.sampler import Sampler
from luthier.model.causal import Model

_NOWHERE = Where("", 0)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to a question, without blanks around it."""

    text: str
    finish_reason: str
    refused: str | None = None
    """Why there is none."""
    cut: bool = False
    """Whether the question did not fit and lost its beginning."""


@dataclass(frozen=True)
class Subject:
    """A model with what reads its questions and writes its answers."""

    name: str
    """As it stands in the table of results."""
    here: Model | None
    """The model, where it runs in this process; elsewhere it answers through its sampler alone."""
    max_length: int
    """Tokens that a question and its answer may have together."""
    renderer: Renderer
    sampler: Sampler
    sampling: SamplingConfig
    system: str | None
    chat: bool
    """Questions go through the chat template; off, they are plain text that the model continues."""
    batch_tokens: int = 8192
    engine: str = "transformers"
    """What runs it."""

    @property
    def model(self) -> Model:
        """The model in this process.

        Raises:
            ConfigError: it runs elsewhere, where only answers can be had.
        """
        if self.here is None:
            raise ConfigError(
                f"{self.engine} answers questions, and does not tell how likely given texts are",
                where=f"--infer_backend {self.engine}",
                fix="Give --method generation for multiple choice, or --infer_backend transformers",
                code="answers_only",
            )
        return self.here

    @cached_property
    def scorer(self) -> Scorer:
        """Scores continuations on the model."""
        return Scorer(self.model, batch_tokens=self.batch_tokens)

    def manner(self) -> list[Json]:
        """What answers depend on besides questions, sampling and weights."""
        return [self.chat or "joined", self.system if self.chat else None]

    def answers(self, items: Sequence[Item], sampling: SamplingConfig) -> list[Answered]:
        """An answer to each question; the n-th one is drawn with the seed plus n."""
        prompts = [self.prompt(item) for item in items]
        room = max(1, self.max_length - min(sampling.max_new_tokens, self.max_length // 2))
        found = self.sampler.generate([prompt[-room:] for prompt in prompts], sampling)
        return [
            Answered(one.text.strip(), one.finish_reason, cut=len(prompt) > room)
            for prompt, one in zip(prompts, found, strict=True)
        ]

    def weighed(self, items: Sequence[Item]) -> list[Found]:
        """How likely each option of each question is."""
        return self.scorer.score([self.asked(item) for item in items])

    def messages(self, item: Item) -> tuple[Message, ...]:
        """What is asked, with the system message."""
        return with_system(item, self.system)

    def prompt(self, item: Item) -> Ids:
        """Token ids of the question."""
        if self.chat:
            return tuple(self.renderer.prompt(self.messages(item)))
        return self._text(self.plain(item))

    def plain(self, item: Item) -> str:
        """The question as text."""
        return as_text(self.messages(item))

    def asked(self, item: Item) -> Asked:
        """The question with its options as continuations; what names of options all begin with belongs to the prompt.

        In plain text, question and option are made tokens of together, so that a token may lie across the two.
        """
        if self.chat:
            prompt, options = self.prompt(item), [self._option(option) for option in item.options]
        else:
            wholes = [self._text(self.plain(item) + option) for option in item.options]
            start = min(_common([*wholes, self.prompt(item)], own=0), min(map(len, wholes)) - 1)
            prompt, options = wholes[0][:start], [whole[start:] for whole in wholes]
        shared = 0 if item.texts else _common(options)
        prompt += options[0][:shared]
        return Asked(prompt, tuple(option[shared:] for option in options))

    def _option(self, option: str) -> Ids:
        """Token ids of an option as an answer in the chat template, without what ends it."""
        if option not in self._options:
            self._options[option] = self._answer(option)
        return self._options[option]

    @cached_property
    def _options(self) -> dict[str, Ids]:
        return {}

    def _answer(self, text: str) -> Ids:
        """Token ids of an answer in the chat template; they do not depend on the question."""
        chat = Chat((Message("user", "?"), Message("assistant", text)), _NOWHERE)
        tokens = self.renderer.chat(chat, train_on="last")
        ids = tokens.ids[tokens.weights > 0].tolist()
        end = next((at for at, token in enumerate(ids) if token in self.renderer.stop_ids), len(ids))
        return tuple(ids[:end]) or tuple(ids)

    def embeddings(self, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
        """What the model makes of texts: the mean of the last hidden states of each, at length 1.

        float32 [texts, D]; each text is cut to the model's context.  Queries are read as all texts are.
        """
        empty = (int(str(self.renderer.tokenizer.eos_token_id)),)
        rows = [self._text(text)[: self.max_length] or empty for text in texts]
        return embed(self.model, rows, "mean", self.batch_tokens)

    def likeness(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """The cosine of each two texts.  float64 [pairs]"""
        return cosines(self.embeddings, pairs)

    def _text(self, text: str) -> Ids:
        return tuple(self.renderer.text(Text(text, _NOWHERE)).ids[:-1].tolist())


def with_system(item: Item, system: str | None) -> tuple[Message, ...]:
    """What is asked, with a system message unless it brings one."""
    if not system or item.messages[0].role == "system":
        return item.messages
    return (Message("system", system), *item.messages)


def as_text(turns: Sequence[Message]) -> str:
    """A question as text: each turn a paragraph of its own, an answer on the line below its question."""
    text = ""
    for turn in turns:
        text += f"{turn.content.strip()}\n" + ("\n" if turn.role != "user" else "")
    return text


def _common(options: Sequence[Ids], own: int = 1) -> int:
    """Tokens that all begin with, leaving each so many of its own."""
    most = min(map(len, options)) - own
    same = (n for n in range(most) if len({option[n] for option in options}) > 1)
    return max(0, next(same, most))
