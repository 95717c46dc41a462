"""A model behind an OpenAI-compatible address, asked the questions of an evaluation.

Answers come from /chat/completions, where the server renders, or in plain text from /completions.  How likely an
option is comes from /completions with `echo` and `logprobs`: the log-probabilities of the text that was sent, of which
those of the option are summed.  A token with the end of the question and the start of the option is the option's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.evaluate.continuations import Found
from luthier.evaluate.specialist import cosines
from luthier.evaluate.subject import Answered, as_text, with_system
from luthier.evaluate.task import Item
from luthier.generate.config import SamplingConfig
from luthier.generate.endpoint import Endpoint, NotAnswered, check_any

_PLAIN = SamplingConfig()
_FURTHER = ("top_p", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty")
"""Sent where they are not as usual; the last three are no fields of OpenAI, but of most servers."""


@dataclass(frozen=True)
class Remote:
    """A model behind an address."""

    name: str
    """As it stands in the table of results."""
    endpoint: Endpoint
    sampling: SamplingConfig
    system: str | None
    template: bool | None
    """Questions are sent as messages; False: they are plain text that the model continues; None: as messages where an
    answer is written, in plain text where options are weighed."""

    @property
    def chat(self) -> bool:
        """Whether answers are written to messages."""
        return self.template is not False

    def manner(self) -> list[Json]:
        """What answers depend on besides questions, sampling and the model."""
        return [self.template, self.system]

    def answers(self, items: Sequence[Item], sampling: SamplingConfig) -> list[Answered]:
        """An answer to each question.

        Raises:
            RunError: the endpoint cannot be reached, or refuses every question.
        """
        path = "chat/completions" if self.chat else "completions"
        bodies = [self._body(item, sampling, number) for number, item in enumerate(items)]
        found = self.endpoint.post(path, bodies, _message if self.chat else _text)
        check_any([one for one in found if isinstance(one, NotAnswered)], len(found))
        return [Answered("", "refused", one.what) if isinstance(one, NotAnswered) else one for one in found]

    def weighed(self, items: Sequence[Item]) -> list[Found]:
        """How likely each option of each question is.

        Raises:
            ConfigError: the endpoint does not tell log-probabilities of what it is sent.
            RunError: it cannot be reached, or refuses a question.
        """
        if self.template:
            raise ConfigError(
                "options are weighed in plain text, for only the server knows its template",
                where="--apply_chat_template true",
                fix="Leave it out, or give --method generation",
            )
        asked: list[tuple[str, str]] = []
        for item in items:
            front = as_text(with_system(item, self.system))
            asked += [(front, option) for option in item.options]
        model = self.endpoint.config.model
        bodies = [
            {"model": model, "prompt": front + option, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
            for front, option in asked
        ]
        found = self.endpoint.post("completions", bodies, _echoed)
        if isinstance(found[0], NotAnswered):
            raise _no_logprobs(found[0].what) from found[0]
        each = iter(zip(asked, found, strict=True))
        results: list[Found] = []
        for item in items:
            sums: list[float] = []
            greedy: list[bool] = []
            for _ in item.options:
                (front, option), told = next(each)
                if isinstance(told, NotAnswered):
                    raise told
                one, best = told.behind(front, option)
                sums.append(one)
                greedy.append(best)
            results.append(Found(tuple(sums), tuple(greedy), cut=False))
        return results

    def embeddings(self, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
        """Vectors of length 1, from /embeddings.  float32 [texts, D]  Raises RunError."""
        vectors_ND = np.array(self.endpoint.embed(texts), np.float32)
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True).clip(1e-12)

    def likeness(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """The cosine of each two texts.  float64 [pairs]"""
        return cosines(self.embeddings, pairs)

    def _body(self, item: Item, sampling: SamplingConfig, number: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.endpoint.config.model,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
        }
        turns = with_system(item, self.system)
        if self.chat:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in turns]
        else:
            body["prompt"] = as_text(turns)
        if sampling.temperature > 0:
            body["seed"] = sampling.seed + number
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body | {k: getattr(sampling, k) for k in _FURTHER if getattr(sampling, k) != getattr(_PLAIN, k)}


@dataclass(frozen=True)
class _Echo:
    """What a server tells of the tokens of a text it was sent."""

    places: tuple[int, ...]
    """Where each token begins, in characters."""
    logprobs: tuple[float | None, ...]
    """The first one has none, for nothing is before it."""
    best: tuple[bool, ...]

    def behind(self, front: str, option: str) -> tuple[float, bool]:
        """Sum over the option's tokens, and whether each is the likeliest.  Raises ConfigError: they are not told."""
        end = len(front) + len(option)
        ends = (*self.places[1:], end)
        mine = [n for n, start in enumerate(self.places) if start < end and ends[n] > len(front)]
        told = [self.logprobs[n] for n in mine]
        if not told or any(one is None for one in told):
            raise _no_logprobs("its answer does not hold the option")
        return sum(one for one in told if one is not None), all(self.best[n] for n in mine)


def _message(answer: Any) -> Answered:
    choice = answer["choices"][0]
    return Answered((choice["message"].get("content") or "").strip(), str(choice.get("finish_reason")))


def _text(answer: Any) -> Answered:
    choice = answer["choices"][0]
    return Answered(choice["text"].strip(), str(choice.get("finish_reason")))


def _echoed(answer: Any) -> _Echo:
    told = answer["choices"][0].get("logprobs") or {}
    if not told.get("text_offset") or not told.get("token_logprobs"):
        raise _no_logprobs("its answer holds none")
    places, logprobs = [int(place) for place in told["text_offset"]], list(told["token_logprobs"])
    tops = told.get("top_logprobs") or [None] * len(places)
    best = [bool(top) and one is not None and one >= max(top.values()) for one, top in zip(logprobs, tops, strict=True)]
    if len(logprobs) != len(places):
        raise ValueError("text_offset and token_logprobs differ in length")
    return _Echo(tuple(places), tuple(logprobs), tuple(best))


def _no_logprobs(why: str) -> ConfigError:
    return ConfigError(
        f"this endpoint does not tell how likely given texts are (echo with logprobs): {why}",
        where="--eval_url",
        fix="Give --method generation, so that answers are written and read",
        code="no_prompt_logprobs",
    )
