"""The model that is evaluated, and how questions become its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError
from luthier.base.records import Chat, Message, Text, Where
from luthier.data.render import Renderer
from luthier.evaluate.continuations import Asked, Ids, Scorer
from luthier.evaluate.specialist import cosines
from luthier.evaluate.task import Item
from luthier.generate.config import SamplingConfig
from luthier.generate.embed import embed
from luthier.generate.sampler import Sampler
from luthier.model.causal import Model

_NOWHERE = Where("", 0)


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

    def messages(self, item: Item) -> tuple[Message, ...]:
        """What is asked, with the system message."""
        if not self.system or item.messages[0].role == "system":
            return item.messages
        return (Message("system", self.system), *item.messages)

    def prompt(self, item: Item) -> Ids:
        """Token ids of the question."""
        if self.chat:
            return tuple(self.renderer.prompt(self.messages(item)))
        return self._text(self.plain(item))

    def plain(self, item: Item) -> str:
        """The question as text: each turn a paragraph of its own, an answer on the line below its question."""
        text = ""
        for turn in self.messages(item):
            text += f"{turn.content.strip()}\n" + ("\n" if turn.role != "user" else "")
        return text

    def asked(self, item: Item) -> Asked:
        """The question with its options as continuations; what they all begin with belongs to the prompt."""
        prompt = self.prompt(item)
        options = [self._behind(item, prompt, option) for option in item.options]
        shared = _common(options)
        prompt += options[0][:shared]
        return Asked(prompt, tuple(option[shared:] for option in options))

    def _behind(self, item: Item, prompt: Ids, option: str) -> Ids:
        """Token ids of an option behind the prompt, without what ends an answer."""
        if not self.chat:
            whole = self._text(self.plain(item) + option)
            return whole[_common([prompt, whole]) :] or whole[-1:]
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


def _common(options: Sequence[Ids]) -> int:
    """Tokens that all begin with, leaving each at least one of its own."""
    most = min(map(len, options)) - 1
    same = (n for n in range(most) if len({option[n] for option in options}) > 1)
    return max(0, next(same, most))
