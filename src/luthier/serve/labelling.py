"""Classes of texts, tags of words, and the chances of every token, from models that were trained for it.

/classify and /pooling speak as vLLM's routes of these names do (SGLang has the first as /v1/classify); /v1/tag is our
own: no route of others tells words and places.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from luthier.base.records import Json
from luthier.serve.failures import Refusal
from luthier.serve.voices import Voices
from luthier.serve.wire import ClassifyRequest, PoolingRequest, TagRequest, TextPair

Row = dict[str, Json]
"""A row as data sets have it, without its label."""


class Labelling(Protocol):
    """What gives labels."""

    async def classes(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """`label`, `labels` or `value` of each row, with `probabilities`, and the tokens read.  Raises Refusal."""
        ...

    async def tags(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """`tokens` and `tags` of each row, `spans` where it is a text, and the tokens read.  Raises Refusal."""
        ...

    async def token_chances(self, texts: Sequence[str]) -> tuple[list[list[list[float]]], int]:
        """The probability of every tag for every token of each text, control tokens too.  Raises Refusal."""
        ...


class NoLabels:
    """A model that gives none."""

    async def classes(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """Refused."""
        raise Refusal(400, "this model was not trained to classify texts", "not_supported", "model")

    async def tags(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """Refused."""
        raise Refusal(400, "this model was not trained to tag words", "not_supported", "model")

    async def token_chances(self, texts: Sequence[str]) -> tuple[list[list[list[float]]], int]:
        """Refused."""
        raise Refusal(400, "this model was not trained to tag words", "not_supported", "model")


async def classify(body: ClassifyRequest, voices: Voices, labelling: Labelling) -> dict[str, Any]:
    """The answer to /classify: each text's class and the probability of all, in the order of the model's labels.

    Beyond vLLM's fields, `labels` are all classes of a model that gives several, and `value` is what a regression says.
    """
    voices.find(body.model)
    if (body.input is None) == (body.messages is None):
        raise Refusal(400, "give input or messages", "invalid_request", "input")
    if body.messages is not None:
        rows: list[Row] = [{"messages": list[Json](body.messages)}]
    else:
        rows = [_row(one) for one in _listed(body.input)]
    found, tokens = await labelling.classes(rows)
    return _around(body.model, "classify", [_classed(n, one) for n, one in enumerate(found)], tokens)


async def tag(body: TagRequest, voices: Voices, labelling: Labelling) -> dict[str, Any]:
    """The answer to /v1/tag: a tag for each word, the entities they make, and where in a text these lie."""
    voices.find(body.model)
    given = [body.input] if isinstance(body.input, str) else body.input
    rows: list[Row] = [{"text": one} if isinstance(one, str) else {"tokens": list[Json](one)} for one in given]
    found, tokens = await labelling.tags(rows)
    return _around(body.model, "tag", [{"index": n, "object": "tags", **one} for n, one in enumerate(found)], tokens)


async def pooling(body: PoolingRequest, voices: Voices, labelling: Labelling) -> dict[str, Any]:
    """The answer to /pooling: a row of probabilities for every token that the tokenizer makes of a text."""
    voices.find(body.model)
    found, tokens = await labelling.token_chances([body.input] if isinstance(body.input, str) else body.input)
    data = [{"index": n, "object": "pooling", "data": rows} for n, rows in enumerate(found)]
    return _around(body.model, "pool", data, tokens)


def _listed(given: str | TextPair | list[str | TextPair] | None) -> list[str | TextPair]:
    if isinstance(given, list):
        return given
    return [] if given is None else [given]


def _row(given: str | TextPair) -> Row:
    if isinstance(given, str):
        return {"text": given}
    return {"text1": given.text, "text2": given.text_pair}


def _classed(index: int, found: Row) -> dict[str, Any]:
    if "value" in found:
        return {"index": index, "label": None, "probs": [], "num_classes": 1, "value": found["value"]}
    chances = found["probabilities"]
    assert isinstance(chances, dict)
    best = max(chances, key=lambda name: float(str(chances[name])))
    more = {"labels": found["labels"]} if "labels" in found else {}
    label = found.get("label", best)
    return {"index": index, "label": label, "probs": list(chances.values()), "num_classes": len(chances), **more}


def _around(model: str, kind: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    return {
        "id": f"{kind}-{secrets.token_hex(16)}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
